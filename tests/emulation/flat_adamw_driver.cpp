// Runs flat_adamw steps in the emulation. Usage: flat_adamw_driver REQUEST RESULT
//
// Request: the Header; per tensor its offset, numel, group and the elements by which its gradient is misaligned; lr and
// weight decay per group; params; then the gradients, one after the other, the same in every step. The case runs once
// per seed, from fresh copies; all runs must agree bit for bit. Result: params, exp_avg, exp_avg_sq, low as they were
// left, step, num_skipped.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "flat_adamw/flat_adamw.cuh"

namespace {

using namespace lgfast;

struct Header {
  int64_t grad_type, low_type, num_tensors, num_groups, total, steps, seeds, skip_nonfinite;
  double beta1, beta2, eps, max_norm, loss_scale;
};

struct Tensor {
  int64_t offset, numel, group, shift;
};

struct State {
  std::vector<float> params, exp_avg, exp_avg_sq;
  std::vector<uint16_t> low;
  float step = 0;
  int64_t num_skipped = 0;
};

struct Case {
  Header header;
  std::vector<Tensor> tensors;
  std::vector<float> lr;
  std::vector<double> weight_decay;
  State initial;
  std::vector<std::vector<unsigned char>> grads;  // each with its shift in front
};

template <typename T>
const char* step(const Case& c, State& state) {
  const int num_tensors = int(c.tensors.size());
  FlatAdamWParams params{};
  for (int k = 0; k < num_tensors; ++k) {
    const Tensor& t = c.tensors[size_t(k)];
    params.tensors[k] = {c.grads[size_t(k)].data() + t.shift * int64_t(sizeof(T)), t.offset, int(t.numel),
                         int(t.group)};
  }
  params.num_tensors = num_tensors;
  std::copy(c.weight_decay.begin(), c.weight_decay.end(), params.weight_decay);
  params.lr = c.lr.data();
  params.params = state.params.data();
  params.exp_avg = state.exp_avg.data();
  params.exp_avg_sq = state.exp_avg_sq.data();
  params.low = state.low.data();
  params.low_type = static_cast<LowType>(c.header.low_type);
  params.beta1 = c.header.beta1;
  params.beta2 = c.header.beta2;
  params.eps = float(c.header.eps);
  const int blocks = plan_flat_adamw(params);
  std::vector<double> partials(static_cast<size_t>(blocks));
  FlatAdamWControl control;
  const float loss_scale = float(c.header.loss_scale);
  params.control = &control;
  params.partials = partials.data();
  const FlatAdamWControlParams control_params{partials.data(),
                                              blocks,
                                              &loss_scale,
                                              &state.step,
                                              &state.num_skipped,
                                              c.header.beta1,
                                              c.header.beta2,
                                              c.header.max_norm,
                                              c.header.skip_nonfinite != 0,
                                              &control};
  const char* error = launch_flat_adamw_norm<T>(params, nullptr);
  if (!error) error = launch_flat_adamw_control_kernel(control_params, nullptr);
  return error ? error : launch_flat_adamw<T>(params, nullptr);
}

void run(const Case& c, State& state) {
  for (int64_t i = 0; i < c.header.steps; ++i) {
    const char* error = c.header.grad_type == 0   ? step<float>(c, state)
                        : c.header.grad_type == 1 ? step<bf16>(c, state)
                                                  : step<fp16>(c, state);
    if (error) {
      std::fprintf(stderr, "%s\n", error);
      std::exit(1);
    }
  }
}

template <typename T>
void read(std::FILE* file, std::vector<T>& values, int64_t count) {
  values.resize(static_cast<size_t>(count));
  if (std::fread(values.data(), sizeof(T), values.size(), file) == values.size()) return;
  std::fprintf(stderr, "the request is too short\n");
  std::exit(1);
}

Case read_case(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  Case c{};
  std::vector<Header> header;
  read(file, header, 1);
  c.header = header[0];
  read(file, c.tensors, c.header.num_tensors);
  read(file, c.lr, c.header.num_groups);
  read(file, c.weight_decay, c.header.num_groups);
  read(file, c.initial.params, c.header.total);
  for (const Tensor& t : c.tensors) {
    c.grads.emplace_back();
    read(file, c.grads.back(), (t.numel + t.shift) * (c.header.grad_type == 0 ? 4 : 2));
  }
  std::fclose(file);
  c.initial.exp_avg.assign(c.initial.params.size(), 0.0f);
  c.initial.exp_avg_sq = c.initial.exp_avg;
  c.initial.low.assign(c.initial.params.size(), 0);
  return c;
}

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename T>
void write(std::FILE* file, const std::vector<T>& values) {
  std::fwrite(values.data(), sizeof(T), values.size(), file);
}

}  // namespace

int main(int, char** argv) {
  const Case c = read_case(argv[1]);
  State result;
  for (int64_t seed = 1; seed <= c.header.seeds; ++seed) {
    emulation::set_seed(uint64_t(seed));
    State state = c.initial;
    run(c, state);
    if (seed > 1 && !(same(state.params, result.params) && same(state.exp_avg, result.exp_avg) &&
                      same(state.exp_avg_sq, result.exp_avg_sq) && same(state.low, result.low))) {
      std::fprintf(stderr, "the result depends on the schedule\n");
      return 1;
    }
    result = state;
  }
  std::FILE* file = std::fopen(argv[2], "wb");
  write(file, result.params);
  write(file, result.exp_avg);
  write(file, result.exp_avg_sq);
  write(file, result.low);
  write(file, std::vector<float>{result.step, float(result.num_skipped)});
  std::fclose(file);
  return 0;
}
