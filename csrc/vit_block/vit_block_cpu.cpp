// vit_block on the CPU: a whole pre-norm block of a Vision Transformer in one call each way, in float32 or float64.
//
// On small problems the library's products, called one by one, leave their results to be fetched again from far caches,
// and every operation between them is another pass over memory. Here a few samples at a time go through the whole block
// while they are in a core's second-level cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "vit_block/vit_block_bwd.h"
#include "vit_block/vit_block_fwd.h"
#include "vit_block/vit_block_inputs.h"

namespace lgfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename F>
auto dispatch_wide(ScalarType dtype, const F& f) {
  return dtype == ScalarType::Double ? f(double{}) : f(float{});
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// Copies the weights, or with `turned` their transposes, to panels. Returns the memory of these.
template <typename T>
Tensor make_panels(const BlockShape& s, const Tensor& like, const T* const* parameters, bool turned, const T** panels) {
  const Tensor room = torch::stable::new_empty(like, {s.offset(kNumBlockParameters)});
  torch::stable::parallel_for(0, kNumBlockProjections, 1, [&](int64_t begin, int64_t end) {
    for (int64_t which = begin; which < end; ++which) {
      const ProjectionSize size = s.projection(int(which));
      const T* weight = parameters[kWeightOf[which]];
      T* to = data<T>(room) + s.offset(kWeightOf[which]);
      panels[which] = to;
      if (turned)
        at_level<pack_turned<T>>(weight, size.inputs, size.outputs, to);
      else
        at_level<pack<T>>(weight, size.outputs, size.inputs, to);
    }
  });
  return room;
}

template <typename T>
BlockOutputs run_fwd(const BlockInputs& in) {
  const BlockShape& s = in.shape;
  const BlockOutputs outputs = new_outputs(s, in.x);
  BlockFwdParams<T> p{};
  p.shape = s;
  p.x = const_data<T>(in.x);
  for (int i = 0; i < kNumBlockParameters; ++i) p.parameters[i] = const_data<T>(in.parameters[i]);
  const Tensor panels = make_panels<T>(s, in.x, p.parameters, true, p.panels);
  const auto& [out, qkv, lse, mixed, middle, hidden] = outputs;
  p.out = data<T>(out);
  p.kept = {data<T>(qkv), data<T>(mixed), data<T>(middle), data<T>(hidden), data<float>(lse)};
  const ShortAttentionFwdParams attention = attention_of(p);
  torch::stable::parallel_for(0, s.batch, 1, [&](int64_t begin, int64_t end) {
    const int most = std::min(samples_at_a_time(s.tokens), int(end - begin));
    if (most <= 0) return;
    BlockForward<T> pass(p, attention, most * s.tokens);
    for (int first = int(begin); first < end; first += most) pass(first, std::min(most, int(end) - first));
  });
  return outputs;
}

template <typename T>
std::tuple<Tensor, Tensor> run_bwd(const BlockInputs& in, const Tensor& dout, const Tensor& qkv, const Tensor& lse,
                                   const Tensor& mixed, const Tensor& middle, const Tensor& hidden) {
  const BlockShape& s = in.shape;
  const Tensor dx = torch::stable::new_empty(in.x, {s.batch, s.tokens, s.width});
  const Tensor dparams = torch::stable::new_zeros(in.x, {s.offset(kNumBlockParameters)});
  BlockBwdParams<T> p{};
  p.shape = s;
  p.dout = const_data<T>(dout), p.x = const_data<T>(in.x), p.dx = data<T>(dx);
  p.kept = {const_data<T>(qkv), const_data<T>(mixed), const_data<T>(middle), const_data<T>(hidden),
            const_data<float>(lse)};
  for (int i = 0; i < kNumBlockParameters; ++i) {
    p.parameters[i] = const_data<T>(in.parameters[i]);
    p.gradients[i] = data<T>(dparams) + s.offset(i);
  }
  const Tensor panels = make_panels<T>(s, in.x, p.parameters, false, p.panels);
  const int wave = std::min(samples_at_a_time(s.tokens) * int(torch::stable::get_num_threads()), s.batch);
  const Tensor room = torch::stable::new_empty(in.x, {Wave<T>::size(s, wave * s.tokens)});
  BlockBackward<T> pass(p, data<T>(room), wave);
  for (int first = 0; first < s.batch; first += wave) pass(first, std::min(wave, s.batch - first));
  return {dx, dparams};
}

BlockOutputs vit_block_fwd(const Tensor& x, const Tensor& norm1_weight, const Tensor& norm1_bias,
                           const Tensor& qkv_weight, const Tensor& qkv_bias, const Tensor& proj_weight,
                           const Tensor& proj_bias, const Tensor& norm2_weight, const Tensor& norm2_bias,
                           const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
                           const Tensor& fc2_bias, int64_t num_heads, double eps1, double eps2) {
  const BlockInputs in = block_inputs(x,
                                      {norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias,
                                       norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias},
                                      num_heads, eps1, eps2);
  return dispatch_wide(x.scalar_type(), [&](auto zero) { return run_fwd<decltype(zero)>(in); });
}

std::tuple<Tensor, Tensor> vit_block_bwd(const Tensor& dout, const Tensor& x, const Tensor& qkv, const Tensor& lse,
                                         const Tensor& mixed, const Tensor& middle, const Tensor& hidden,
                                         const Tensor& norm1_weight, const Tensor& norm1_bias, const Tensor& qkv_weight,
                                         const Tensor& qkv_bias, const Tensor& proj_weight, const Tensor& proj_bias,
                                         const Tensor& norm2_weight, const Tensor& norm2_bias, const Tensor& fc1_weight,
                                         const Tensor& fc1_bias, const Tensor& fc2_weight, const Tensor& fc2_bias,
                                         int64_t num_heads, double eps1, double eps2) {
  const BlockInputs in = block_inputs(x,
                                      {norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias,
                                       norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias},
                                      num_heads, eps1, eps2);
  check_kept(in, dout, qkv, lse, mixed, middle, hidden);
  return dispatch_wide(x.scalar_type(), [&](auto zero) {
    return run_bwd<decltype(zero)>(in, packed(dout), packed(qkv), packed(lse), packed(mixed), packed(middle),
                                   packed(hidden));
  });
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CPU, m) {
  m.impl("vit_block_fwd", TORCH_BOX(&lgfast::vit_block_fwd));
  m.impl("vit_block_bwd", TORCH_BOX(&lgfast::vit_block_bwd));
}
