// Runs flat_adamw steps in the emulation; see driver.h.
//
// Request: the Header; for each tensor its offset, numel, group, and the elements by which its gradient is misaligned;
// hyperparameters of the groups; steps of the tensors; params; then the gradients, one after the other, the same in
// every step. Result: params, exp_avg, exp_avg_sq, low, steps and num_skipped, as the steps left them.
#include <algorithm>

#include "driver.h"
#include "flat_adamw/flat_adamw.cuh"

namespace {

using namespace lgfast;
using namespace lgfast::emulation;

struct Header {
  int64_t dtype, low_type, num_tensors, num_groups, total, steps, seeds, skip_nonfinite, counted_per_launch;
  double max_norm, loss_scale, found_inf;
};

struct Tensor {
  int64_t offset, numel, group, shift;
};

struct Case {
  Header header;
  std::vector<Tensor> tensors;
  std::vector<double> hyperparameters;
  std::vector<float> steps, params;
  std::vector<Bytes> grads;  // each with its shift in front
};

// What the steps change.
struct State {
  Bytes params, exp_avg, exp_avg_sq, low, steps, num_skipped;
};

template <typename T>
Case read_case(const Header& header, Request& request) {
  Case c{header,
         request.read<Tensor>(header.num_tensors),
         request.read<double>(header.num_groups * kNumHyperparameters),
         request.read<float>(header.num_tensors),
         request.read<float>(header.total),
         {}};
  for (const Tensor& t : c.tensors)
    c.grads.push_back(request.read<unsigned char>((t.numel + t.shift) * int64_t(sizeof(T))));
  return c;
}

Bytes bytes_of(const std::vector<float>& values) {
  Bytes bytes(values.size() * sizeof(float));
  std::copy(values.begin(), values.end(), data_of<float>(bytes));
  return bytes;
}

State initial_state(const Case& c) {
  const Bytes zeros(c.params.size() * sizeof(float)), low(c.params.size() * sizeof(uint16_t));
  return {bytes_of(c.params), zeros, zeros, low, bytes_of(c.steps), Bytes(sizeof(int64_t))};
}

template <typename T>
FlatAdamWParams make_params(const Case& c, State& state) {
  FlatAdamWParams params{};
  params.num_tensors = int(c.tensors.size());
  for (size_t k = 0; k < c.tensors.size(); ++k) {
    const Tensor& t = c.tensors[k];
    params.tensors[k] = {c.grads[k].data() + t.shift * int64_t(sizeof(T)), uint32_t(t.offset / kFlatAdamWAlign),
                         int(t.numel)};
  }
  params.params = data_of<float>(state.params);
  params.exp_avg = data_of<float>(state.exp_avg);
  params.exp_avg_sq = data_of<float>(state.exp_avg_sq);
  params.low = state.low.data();
  params.low_type = static_cast<LowType>(c.header.low_type);
  return params;
}

// Launches control as flat_adamw_cuda.cpp splits it.
void launch_control(const Case& c, FlatAdamWControlParams params) {
  AdamWFactors* const factors = params.factors;
  for (int64_t begin = 0; begin < c.header.num_tensors; begin += c.header.counted_per_launch) {
    const int64_t end = std::min(begin + c.header.counted_per_launch, c.header.num_tensors);
    for (int64_t k = begin; k < end; ++k) params.counted[k - begin] = {int(k), int(c.tensors[k].group)};
    params.num_counted = int(end - begin);
    params.is_first = begin == 0;
    params.factors = factors + begin;
    check(launch_flat_adamw_control_kernel(params, nullptr));
  }
}

template <typename T>
void step(const Case& c, State& state) {
  const Header& h = c.header;
  FlatAdamWParams params = make_params<T>(c, state);
  const int blocks = plan_flat_adamw(params);
  Bytes partials = poisoned(blocks * int64_t(sizeof(double)));
  Bytes factors = poisoned(h.num_tensors * int64_t(sizeof(AdamWFactors)));
  FlatAdamWControl control;
  const float loss_scale = float(h.loss_scale), found_inf = float(h.found_inf);
  params.control = &control;
  params.factors = data_of<AdamWFactors>(factors);
  params.partials = data_of<double>(partials);
  FlatAdamWControlParams control_params{};
  control_params.partials = params.partials;
  control_params.num_partials = blocks;
  control_params.loss_scale = &loss_scale;
  control_params.found_inf = &found_inf;
  control_params.hyperparameters = c.hyperparameters.data();
  control_params.steps = data_of<float>(state.steps);
  control_params.num_skipped = data_of<int64_t>(state.num_skipped);
  control_params.max_norm = h.max_norm;
  control_params.skip_nonfinite = h.skip_nonfinite != 0;
  control_params.control = &control;
  control_params.factors = data_of<AdamWFactors>(factors);
  check(launch_flat_adamw_norm<T>(params, nullptr));
  launch_control(c, control_params);
  check(launch_flat_adamw<T>(params, nullptr));
}

}  // namespace

int main(int argc, char** argv) {
  return drive(argc, argv, [](Request& request) {
    const Header header = request.read<Header>();
    return dispatch<float, bf16, fp16>(header.dtype, [&](auto zero) {
      using T = decltype(zero);
      const Case c = read_case<T>(header, request);
      return run_seeds(header.seeds, [&] {
        State state = initial_state(c);
        for (int64_t i = 0; i < header.steps; ++i) step<T>(c, state);
        return std::vector<Bytes>{state.params, state.exp_avg, state.exp_avg_sq,
                                  state.low,    state.steps,   state.num_skipped};
      });
    });
  });
}
