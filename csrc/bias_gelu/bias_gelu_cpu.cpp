// bias_gelu on the CPU: out = gelu(x + bias) with the exact GELU, dx = dout gelu'(x + bias), dbias = sums of dx.
//
// A work unit is 64 rows, whatever the thread count. A row is a loop that the compiler turns into vector code (gelu.h
// has no branch). Each unit has its own sums of dbias, which are added in order at the end, so the thread count does
// not change a bit of the result.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bias_gelu/bias_gelu_inputs.h"
#include "bias_gelu/gelu.h"
#include "common/accumulate.h"
#include "common/dispatch.h"
#include "common/row_units.h"
#include "common/vectorize.h"

namespace lgfast {
namespace {

using torch::stable::Tensor;

template <typename T, typename Acc>
void fwd_row(const T* __restrict__ x, const Acc* __restrict__ bias, T* __restrict__ out, int channels) {
  for (int c = 0; c < channels; ++c) {
    const Acc v = Accumulate<T>::load(x[c]) + bias[c];
    out[c] = Accumulate<T>::store(v * normal_for<T>(v).cdf);
  }
}

// Adds to dbias.
template <typename T, typename Acc>
void bwd_row(const T* __restrict__ dout, const T* __restrict__ x, const Acc* __restrict__ bias, T* __restrict__ dx,
             Acc* __restrict__ dbias, int channels) {
  for (int c = 0; c < channels; ++c) {
    const Acc v = Accumulate<T>::load(x[c]) + bias[c];
    const Normal<Acc> at = normal_for<T>(v);
    const Acc d = Accumulate<T>::load(dout[c]) * (at.cdf + v * at.pdf);
    dbias[c] += d;
    dx[c] = Accumulate<T>::store(d);
  }
}

template <typename T>
void run_fwd(const BiasGeluParams& p) {
  const auto bias = widened<T>(p.bias, p.channels);
  for_each_row_unit(p.rows, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t at = begin * p.channels; at < end * p.channels; at += p.channels)
      at_level<fwd_row<T, typename Accumulate<T>::type>>(static_cast<const T*>(p.x) + at, bias.data(),
                                                         static_cast<T*>(p.out) + at, p.channels);
  });
}

template <typename T>
void run_bwd(const BiasGeluParams& p) {
  using Acc = typename Accumulate<T>::type;
  const int64_t units = num_row_units(p.rows);
  const std::vector<Acc> bias = widened<T>(p.bias, p.channels);
  std::vector<Acc> partials(units * p.channels), sums(p.channels);
  for_each_row_unit(p.rows, [&](int64_t unit, int64_t begin, int64_t end) {
    Acc* dbias = partials.data() + unit * p.channels;
    for (int64_t at = begin * p.channels; at < end * p.channels; at += p.channels)
      at_level<bwd_row<T, Acc>>(static_cast<const T*>(p.dout) + at, static_cast<const T*>(p.x) + at, bias.data(),
                                static_cast<T*>(p.out) + at, dbias, p.channels);
  });
  for (int64_t u = 0; u < units; ++u)
    for (int c = 0; c < p.channels; ++c) sums[c] += partials[u * p.channels + c];
  for (int c = 0; c < p.channels; ++c) static_cast<T*>(p.dbias)[c] = Accumulate<T>::store(sums[c]);
}

Tensor bias_gelu_fwd(const Tensor& x, const Tensor& bias) {
  const BiasGeluInputs in = bias_gelu_inputs(x, bias, std::nullopt);
  dispatch_float("bias_gelu", x.scalar_type(), [&](auto zero) { run_fwd<decltype(zero)>(in.params); });
  return in.out;
}

std::tuple<Tensor, Tensor> bias_gelu_bwd(const Tensor& dout, const Tensor& x, const Tensor& bias) {
  const BiasGeluInputs in = bias_gelu_inputs(x, bias, dout);
  dispatch_float("bias_gelu", x.scalar_type(), [&](auto zero) { run_bwd<decltype(zero)>(in.params); });
  return {in.out, in.dbias};
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CPU, m) {
  m.impl("bias_gelu_fwd", TORCH_BOX(&lgfast::bias_gelu_fwd));
  m.impl("bias_gelu_bwd", TORCH_BOX(&lgfast::bias_gelu_bwd));
}
