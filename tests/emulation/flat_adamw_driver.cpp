// Runs flat_adamw steps in the emulation; see driver.h.
//
// Request: the Header; per tensor its offset, numel, group and the elements by which its gradient is misaligned; lr and
// weight decay per group; params; then the gradients, one after the other, the same in every step. Result: params,
// exp_avg, exp_avg_sq, low as they were left, step, num_skipped.
#include <algorithm>

#include "driver.h"
#include "flat_adamw/flat_adamw.cuh"

namespace {

using namespace lgfast;
using namespace lgfast::emulation;

struct Header {
  int64_t dtype, low_type, num_tensors, num_groups, total, steps, seeds, skip_nonfinite;
  double beta1, beta2, eps, max_norm, loss_scale;
};

struct Tensor {
  int64_t offset, numel, group, shift;
};

struct Case {
  Header header;
  std::vector<Tensor> tensors;
  std::vector<float> lr;
  std::vector<double> weight_decay;
  std::vector<float> params;
  std::vector<Bytes> grads;  // each with its shift in front
};

// What steps change.
struct State {
  Bytes params, exp_avg, exp_avg_sq, low, step, num_skipped;
};

template <typename T>
Case read_case(const Header& header, Request& request) {
  Case c{header,
         request.read<Tensor>(header.num_tensors),
         request.read<float>(header.num_groups),
         request.read<double>(header.num_groups),
         request.read<float>(header.total),
         {}};
  for (const Tensor& t : c.tensors)
    c.grads.push_back(request.read<unsigned char>((t.numel + t.shift) * int64_t(sizeof(T))));
  return c;
}

State initial_state(const Case& c) {
  const Bytes zeros(c.params.size() * sizeof(float)), low(c.params.size() * sizeof(uint16_t));
  State state{zeros, zeros, zeros, low, Bytes(sizeof(float)), Bytes(sizeof(int64_t))};
  std::copy(c.params.begin(), c.params.end(), data_of<float>(state.params));
  return state;
}

template <typename T>
FlatAdamWParams make_params(const Case& c, State& state) {
  FlatAdamWParams params{};
  params.num_tensors = int(c.tensors.size());
  for (size_t k = 0; k < c.tensors.size(); ++k) {
    const Tensor& t = c.tensors[k];
    params.tensors[k] = {c.grads[k].data() + t.shift * int64_t(sizeof(T)), t.offset, int(t.numel), int(t.group)};
  }
  std::copy(c.weight_decay.begin(), c.weight_decay.end(), params.weight_decay);
  params.lr = c.lr.data();
  params.params = data_of<float>(state.params);
  params.exp_avg = data_of<float>(state.exp_avg);
  params.exp_avg_sq = data_of<float>(state.exp_avg_sq);
  params.low = state.low.data();
  params.low_type = static_cast<LowType>(c.header.low_type);
  params.beta1 = c.header.beta1;
  params.beta2 = c.header.beta2;
  params.eps = float(c.header.eps);
  return params;
}

template <typename T>
void step(const Case& c, State& state) {
  const Header& h = c.header;
  FlatAdamWParams params = make_params<T>(c, state);
  const int blocks = plan_flat_adamw(params);
  Bytes partials = poisoned(blocks * int64_t(sizeof(double)));
  FlatAdamWControl control;
  const float loss_scale = float(h.loss_scale);
  params.control = &control;
  params.partials = data_of<double>(partials);
  FlatAdamWControlParams control_params{};
  control_params.partials = params.partials;
  control_params.num_partials = blocks;
  control_params.loss_scale = &loss_scale;
  control_params.step = data_of<float>(state.step);
  control_params.num_skipped = data_of<int64_t>(state.num_skipped);
  control_params.beta1 = h.beta1;
  control_params.beta2 = h.beta2;
  control_params.max_norm = h.max_norm;
  control_params.skip_nonfinite = h.skip_nonfinite != 0;
  control_params.control = &control;
  check(launch_flat_adamw_norm<T>(params, nullptr));
  check(launch_flat_adamw_control_kernel(control_params, nullptr));
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
                                  state.low,    state.step,    state.num_skipped};
      });
    });
  });
}
