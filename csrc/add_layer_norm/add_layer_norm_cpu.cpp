// add_layer_norm on the CPU: y = residual + drop_scale x, out = LayerNorm(y), and the gradients in one pass.
//
// A work unit is 64 rows, whatever the thread count; a row stays in L1. A sum over a row is formed as sixteen
// independent sums, in explicit vectors: GCC 12 keeps an array of sums in memory, and a float32 row of 192 took half as
// long again. Each unit has its own sums of dweight and dbias, which are added in order at the end, so the result does
// not depend on the thread count. Numerics: y is rounded before its statistics are taken, as in plain PyTorch; float
// inside (double for double).
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "add_layer_norm/add_layer_norm_inputs.h"
#include "common/accumulate.h"
#include "common/dispatch.h"
#include "common/row_units.h"
#include "common/vectorize.h"

namespace lgfast {
namespace {

using torch::stable::Tensor;

// Eight values, at any address, in as many registers as the processor needs for them.
template <typename Acc>
struct Eight {
  typedef Acc type __attribute__((vector_size(8 * sizeof(Acc)), aligned(sizeof(Acc)), may_alias));
};

template <typename Acc>
LGFAST_INLINE const typename Eight<Acc>::type& eight_at(const Acc* a) {
  return *reinterpret_cast<const typename Eight<Acc>::type*>(a);
}

template <typename Acc>
LGFAST_INLINE Acc total(const typename Eight<Acc>::type& a) {
  return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

template <typename Acc>
LGFAST_INLINE Acc sum_of(const Acc* a, int channels) {
  typename Eight<Acc>::type even = {}, odd = {};
  for (int c = 0; c < channels; c += 16) {
    even += eight_at(a + c);
    if (c + 8 < channels) odd += eight_at(a + c + 8);
  }
  return total<Acc>(even + odd);
}

// Sum of a[c] * b[c].
template <typename Acc>
LGFAST_INLINE Acc dot(const Acc* a, const Acc* b, int channels) {
  typename Eight<Acc>::type even = {}, odd = {};
  for (int c = 0; c < channels; c += 16) {
    even += eight_at(a + c) * eight_at(b + c);
    if (c + 8 < channels) odd += eight_at(a + c + 8) * eight_at(b + c + 8);
  }
  return total<Acc>(even + odd);
}

// Computes one row. weight and bias are given in the type of the computation.
template <typename T, typename Acc>
void fwd_row(const T* __restrict__ x, const T* __restrict__ residual, Acc scale, const Acc* __restrict__ weight,
             const Acc* __restrict__ bias, int channels, Acc eps, T* __restrict__ y, T* __restrict__ out, Acc* mean,
             Acc* rstd) {
  Acc row[kAddLayerNormMaxChannels];
  for (int c = 0; c < channels; ++c)
    y[c] = Accumulate<T>::store(Accumulate<T>::load(residual[c]) + scale * Accumulate<T>::load(x[c]));
  for (int c = 0; c < channels; ++c) row[c] = Accumulate<T>::load(y[c]);
  const Acc m = sum_of(row, channels) / channels;
  for (int c = 0; c < channels; ++c) row[c] -= m;
  const Acc variance = dot(row, row, channels) / channels;
  const Acc r = Acc(1) / std::sqrt(variance + eps);
  for (int c = 0; c < channels; ++c) out[c] = Accumulate<T>::store(row[c] * r * weight[c] + bias[c]);
  *mean = m;
  *rstd = r;
}

// Computes the gradients of one row, and adds to dweight and dbias.
template <typename T, typename Acc>
void bwd_row(const T* __restrict__ dout, const T* __restrict__ dy, const T* __restrict__ y, Acc mean, Acc rstd,
             Acc scale, const Acc* __restrict__ weight, int channels, Acc* __restrict__ dweight,
             Acc* __restrict__ dbias, T* __restrict__ dx, T* __restrict__ dresidual) {
  Acc xhat[kAddLayerNormMaxChannels], d[kAddLayerNormMaxChannels];
  for (int c = 0; c < channels; ++c) {
    const Acc g = Accumulate<T>::load(dout[c]);
    xhat[c] = (Accumulate<T>::load(y[c]) - mean) * rstd;
    dweight[c] += g * xhat[c];
    dbias[c] += g;
    d[c] = g * weight[c];
  }
  const Acc sum = sum_of(d, channels) / channels;
  const Acc products = dot(d, xhat, channels) / channels;
  for (int c = 0; c < channels; ++c) {
    Acc gradient = rstd * (d[c] - sum - xhat[c] * products);
    if (dy) gradient += Accumulate<T>::load(dy[c]);
    dresidual[c] = Accumulate<T>::store(gradient);
    if (dx) dx[c] = Accumulate<T>::store(gradient * scale);
  }
}

template <typename T>
typename Accumulate<T>::type row_scale(const AddLayerNormRows& shape, int64_t row) {
  if (!shape.drop_scale) return 1;
  return Accumulate<T>::load(static_cast<const T*>(shape.drop_scale)[row / shape.rows_per_sample]);
}

template <typename T>
void run_fwd(const AddLayerNormFwdParams& p) {
  using Acc = typename Accumulate<T>::type;
  const int channels = p.shape.channels;
  const std::vector<Acc> weight = widened<T>(p.shape.weight, channels), bias = widened<T>(p.bias, channels);
  for_each_row_unit(p.shape.rows, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * channels;
      at_level<fwd_row<T, Acc>>(static_cast<const T*>(p.x) + at, static_cast<const T*>(p.residual) + at,
                                row_scale<T>(p.shape, row), weight.data(), bias.data(), channels,
                                static_cast<Acc>(p.eps), static_cast<T*>(p.y) + at, static_cast<T*>(p.out) + at,
                                static_cast<Acc*>(p.mean) + row, static_cast<Acc*>(p.rstd) + row);
    }
  });
}

template <typename T>
void run_bwd(const AddLayerNormBwdParams& p) {
  using Acc = typename Accumulate<T>::type;
  const int channels = p.shape.channels;
  const int64_t units = num_row_units(p.shape.rows);
  const std::vector<Acc> weight = widened<T>(p.shape.weight, channels);
  std::vector<Acc> partials(units * 2 * channels), sums(2 * channels);
  for_each_row_unit(p.shape.rows, [&](int64_t unit, int64_t begin, int64_t end) {
    Acc* dweight = partials.data() + unit * 2 * channels;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * channels;
      at_level<bwd_row<T, Acc>>(
          static_cast<const T*>(p.dout) + at, p.dy ? static_cast<const T*>(p.dy) + at : nullptr,
          static_cast<const T*>(p.y) + at, static_cast<const Acc*>(p.mean)[row], static_cast<const Acc*>(p.rstd)[row],
          row_scale<T>(p.shape, row), weight.data(), channels, dweight, dweight + channels,
          p.shape.drop_scale ? static_cast<T*>(p.dx) + at : nullptr, static_cast<T*>(p.dresidual) + at);
    }
  });
  for (int64_t u = 0; u < units; ++u)
    for (int c = 0; c < 2 * channels; ++c) sums[c] += partials[u * 2 * channels + c];
  for (int c = 0; c < 2 * channels; ++c) static_cast<T*>(p.dparams)[c] = Accumulate<T>::store(sums[c]);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_fwd(const Tensor& x, const Tensor& residual,
                                                              const Tensor& weight, const Tensor& bias,
                                                              const std::optional<Tensor>& drop_scale, double eps) {
  const auto in = add_layer_norm_fwd_inputs(x, residual, weight, bias, drop_scale, eps);
  dispatch_float("add_layer_norm", x.scalar_type(), [&](auto zero) { run_fwd<decltype(zero)>(in.params); });
  return in.outputs;
}

std::tuple<Tensor, Tensor, Tensor> add_layer_norm_bwd(const Tensor& dout, const std::optional<Tensor>& dy,
                                                      const Tensor& y, const Tensor& weight,
                                                      const std::optional<Tensor>& drop_scale, const Tensor& mean,
                                                      const Tensor& rstd) {
  const auto in = add_layer_norm_bwd_inputs(dout, dy, y, weight, drop_scale, mean, rstd);
  dispatch_float("add_layer_norm", y.scalar_type(), [&](auto zero) { run_bwd<decltype(zero)>(in.params); });
  return in.outputs;
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CPU, m) {
  m.impl("add_layer_norm_fwd", TORCH_BOX(&lgfast::add_layer_norm_fwd));
  m.impl("add_layer_norm_bwd", TORCH_BOX(&lgfast::add_layer_norm_bwd));
}
