// flat_adamw on the CPU: AdamW on flat buffers, reading every gradient where autograd left it.
//
// A work unit is a chunk of one gradient. Chunks do not depend on the thread count, and the partial sums of the norm
// are added in order, so the result does not depend on it either. Within a unit, the code widens gradients block by
// block into a buffer that stays in L1. The update is one loop over four streams, which the compiler turns into vector
// code.
#include <torch/csrc/stable/library.h>

#include "common/accumulate.h"
#include "common/dispatch.h"
#include "common/vectorize.h"
#include "flat_adamw/flat_adamw_inputs.h"

namespace lgfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kBlock = 1024;        // elements widened at a time
constexpr int kUnit = 16 * kBlock;  // elements of a work unit

struct Unit {
  int tensor, begin, end;
};

std::vector<Unit> split_units(const std::vector<FlatAdamWTensor>& tensors) {
  std::vector<Unit> units;
  for (size_t k = 0; k < tensors.size(); ++k)
    for (int begin = 0; begin < tensors[k].numel; begin += kUnit)
      units.push_back({static_cast<int>(k), begin, std::min(begin + kUnit, tensors[k].numel)});
  return units;
}

template <typename T>
const float* widen(const T* grad, int n, float* buffer) {
  for (int i = 0; i < n; ++i) buffer[i] = Accumulate<T>::load(grad[i]);
  return buffer;
}
const float* widen(const float* grad, int, float*) { return grad; }

template <typename T>
double sum_of_squares(const T* grad, int n) {
  constexpr int kLanes = 8;
  float sums[kLanes] = {};
  double sum = 0;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) {
      const float g = Accumulate<T>::load(grad[i + l]);
      sums[l] += g * g;
    }
  for (; i < n; ++i) sum += static_cast<double>(Accumulate<T>::load(grad[i])) * Accumulate<T>::load(grad[i]);
  for (float lane : sums) sum += lane;
  return sum;
}

void update_block(float* __restrict__ param, float* __restrict__ exp_avg, float* __restrict__ exp_avg_sq,
                  const float* __restrict__ grad, int n, AdamWFactors f) {
  for (int i = 0; i < n; ++i) adamw_update(param[i], exp_avg[i], exp_avg_sq[i], grad[i], f);
}

template <typename Low>
void narrow(const float* param, Low* low, int n) {
  for (int i = 0; i < n; ++i) low[i] = from_float<Low>(param[i]);
}

template <typename T>
void update_unit(const FlatAdamWParams& p, const AdamWFactors& factors, const FlatAdamWTensor& tensor,
                 const Unit& unit) {
  float buffer[kBlock];
  for (int begin = unit.begin; begin < unit.end; begin += kBlock) {
    const int n = std::min(kBlock, unit.end - begin);
    const int64_t flat = int64_t{kFlatAdamWAlign} * tensor.place + begin;
    const float* grad = widen(static_cast<const T*>(tensor.grad) + begin, n, buffer);
    at_level<update_block>(p.params + flat, p.exp_avg + flat, p.exp_avg_sq + flat, grad, n, factors);
    if (p.low_type == LowType::kBFloat16) narrow(p.params + flat, static_cast<bf16*>(p.low) + flat, n);
    if (p.low_type == LowType::kFloat16) narrow(p.params + flat, static_cast<fp16*>(p.low) + flat, n);
  }
}

template <typename T>
void run(const FlatAdamWInputs& in) {
  const std::vector<Unit> units = split_units(in.tensors);
  const int64_t num_units = static_cast<int64_t>(units.size());
  const auto for_each_unit = [&](const auto& f) {
    torch::stable::parallel_for(0, num_units, 1, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) f(u, in.tensors[units[u].tensor], units[u]);
    });
  };
  double sum = 0;
  if (in.control.max_norm > 0 || in.control.skip_nonfinite) {
    std::vector<double> partials(units.size());
    for_each_unit([&](int64_t u, const FlatAdamWTensor& tensor, const Unit& unit) {
      partials[u] = sum_of_squares(static_cast<const T*>(tensor.grad) + unit.begin, unit.end - unit.begin);
    });
    for (double partial : partials) sum += partial;
  }
  const FlatAdamWControl control = flat_adamw_control(sum, in.control);
  *in.control.num_skipped += control.skip;
  if (control.skip) return;
  std::vector<AdamWFactors> factors;
  for (const FlatAdamWCounted& counted : in.counted) factors.push_back(count_adamw_step(control, in.control, counted));
  for_each_unit([&](int64_t, const FlatAdamWTensor& tensor, const Unit& unit) {
    update_unit<T>(in.shared, factors[unit.tensor], tensor, unit);
  });
}

void flat_adamw(Tensor params, Tensor exp_avg, Tensor exp_avg_sq, std::optional<Tensor> low, Tensor steps,
                Tensor num_skipped, const std::vector<std::optional<Tensor>>& grads,
                const std::vector<int64_t>& offsets, const std::vector<int64_t>& groups, const Tensor& hyperparameters,
                const std::optional<Tensor>& loss_scale, const std::optional<Tensor>& found_inf, double max_norm,
                bool skip_nonfinite) {
  const FlatAdamWInputs in =
      flat_adamw_inputs(params, exp_avg, exp_avg_sq, low, steps, num_skipped, grads, offsets, groups, hyperparameters,
                        loss_scale, found_inf, max_norm, skip_nonfinite);
  dispatch_float32("flat_adamw", in.grad_type, [&](auto zero) { run<decltype(zero)>(in); });
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CPU, m) { m.impl("flat_adamw", TORCH_BOX(&lgfast::flat_adamw)); }
