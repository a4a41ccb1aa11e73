// short_attention on the GPU, torch side: device guard, checks, allocation, params, launch on the current stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "common/check.h"
#include "common/cuda_stream.h"
#include "common/float16.h"
#include "common/packed.h"
#include "short_attention/short_attention.h"
#include "short_attention/short_attention_plan.h"

namespace lgfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

constexpr const char* kOp = "short_attention";

// The kernels read 16 bytes at a time along D; anything else is copied first.
Tensor aligned(const Tensor& tensor) {
  bool is_aligned = tensor.stride(-1) == 1 && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  for (int64_t i = 0; i + 1 < tensor.dim(); ++i) is_aligned = is_aligned && tensor.stride(i) % 8 == 0;
  return is_aligned ? tensor : packed(tensor);
}

struct Shape {
  int batch, queries, keys, heads, head_dim;
};

// Views of a [B, N, H, D] tensor.
HeadsInput input_view(const Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }
HeadsOutput output_view(const Tensor& x) { return {x.mutable_data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }

// Part 0, 1 or 2 (q, k, v) of a packed [B, N, 3, H, D] tensor.
HeadsInput input_part(const Tensor& x, int part) {
  return {static_cast<const uint16_t*>(x.const_data_ptr()) + part * x.stride(2), x.stride(0), x.stride(1), x.stride(3)};
}
HeadsOutput output_part(const Tensor& x, int part) {
  return {static_cast<uint16_t*>(x.mutable_data_ptr()) + part * x.stride(2), x.stride(0), x.stride(1), x.stride(3)};
}

// The sentences of unsupported_shape_reason in lgfast/ops/short_attention.py.
void check_limits(const Shape& s, ScalarType dtype) {
  LGFAST_CHECK(dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, kOp,
               "dtype must be bfloat16 or float16, got ", toString(dtype));
  LGFAST_CHECK(s.head_dim == 32 || s.head_dim == 48 || s.head_dim == 64, kOp, "head dim must be 32, 48 or 64, got ",
               s.head_dim);
  LGFAST_CHECK(s.queries >= 1 && s.keys >= 1, kOp, "there must be queries and keys, got ", s.queries, " and ", s.keys);
  LGFAST_CHECK(s.keys <= kMaxSequence, kOp, "at most ", kMaxSequence, " keys, got ", s.keys);
  const int most = s.keys <= kFewKeys ? kMaxQueriesFewKeys : kMaxSequence;
  LGFAST_CHECK(s.queries <= most, kOp, "at most ", most, " queries for ", s.keys, " keys, got ", s.queries);
}

void check_like(const char* name, const Tensor& x, const Tensor& q) {
  LGFAST_CHECK(x.scalar_type() == q.scalar_type(), kOp, name, " must have q's dtype ", toString(q.scalar_type()),
               ", got ", toString(x.scalar_type()));
  LGFAST_CHECK(x.is_cuda() && x.get_device_index() == q.get_device_index(), kOp, name, " must be on q's device");
}

// What backward gets besides q, k, v: out and dout shaped alike, and lse [B, H, N].
void check_saved(const Tensor& dout, const Tensor& out, const Tensor& lse, const Tensor& q, const Shape& s) {
  check_like("dout", dout, q);
  check_like("out", out, q);
  LGFAST_CHECK(shape(dout) == shape(out) && out.numel() == int64_t(s.batch) * s.queries * s.heads * s.head_dim, kOp,
               "dout must have the shape of out, got ", shape(dout), " and ", shape(out));
  LGFAST_CHECK(lse.scalar_type() == ScalarType::Float && lse.is_contiguous() && lse.is_cuda() &&
                   lse.numel() == int64_t(s.batch) * s.heads * s.queries,
               kOp, "lse must be the contiguous float32 [B, H, N] of forward, got ", shape(lse));
}

Shape checked_shape(const Tensor& q, const Tensor& k, const Tensor& v) {
  LGFAST_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, kOp, "q, k, v must be [B, N, H, D], got ", shape(q), ", ",
               shape(k), ", ", shape(v));
  bool fits = q.size(0) == k.size(0) && q.size(2) == k.size(2) && q.size(3) == k.size(3);
  for (int64_t i = 0; i < 4; ++i) fits = fits && k.size(i) == v.size(i);
  LGFAST_CHECK(fits, kOp, "k and v must have q's batch, heads and head dim, got ", shape(q), ", ", shape(k), ", ",
               shape(v));
  check_like("k", k, q);
  check_like("v", v, q);
  const Shape s{int(q.size(0)), int(q.size(1)), int(k.size(1)), int(q.size(2)), int(q.size(3))};
  check_limits(s, q.scalar_type());
  return s;
}

Shape checked_shape(const Tensor& qkv) {
  LGFAST_CHECK(qkv.dim() == 5 && qkv.size(2) == 3, kOp, "qkv must be [B, N, 3, H, D], got ", shape(qkv));
  const Shape s{int(qkv.size(0)), int(qkv.size(1)), int(qkv.size(1)), int(qkv.size(3)), int(qkv.size(4))};
  check_limits(s, qkv.scalar_type());
  return s;
}

// Calls launcher(T{}, head dim as a constant).
template <typename F>
void dispatch(ScalarType dtype, int head_dim, const F& launcher) {
  const auto with_dim = [&](auto zero) {
    switch (head_dim) {
      case 32: return launcher(zero, std::integral_constant<int, 32>{});
      case 48: return launcher(zero, std::integral_constant<int, 48>{});
      default: return launcher(zero, std::integral_constant<int, 64>{});
    }
  };
  const char* error = dtype == ScalarType::BFloat16 ? with_dim(bf16{}) : with_dim(fp16{});
  LGFAST_CHECK(!error, kOp, error);
}

void launch_fwd(const Tensor& like, const Shape& s, ShortAttentionFwdParams params) {
  if (s.batch * s.heads == 0) return;
  params.batch = s.batch;
  params.heads = s.heads;
  params.num_queries = s.queries;
  params.num_keys = s.keys;
  void* stream = current_cuda_stream(like.get_device_index());
  dispatch(like.scalar_type(), s.head_dim, [&](auto zero, auto dim) {
    return launch_short_attention_fwd<decltype(zero), decltype(dim)::value>(params, stream);
  });
}

void launch_bwd(const Tensor& like, const Shape& s, ShortAttentionBwdParams params) {
  if (s.batch * s.heads == 0) return;
  params.batch = s.batch;
  params.heads = s.heads;
  params.num_queries = s.queries;
  params.num_keys = s.keys;
  void* stream = current_cuda_stream(like.get_device_index());
  dispatch(like.scalar_type(), s.head_dim, [&](auto zero, auto dim) {
    return launch_short_attention_bwd<decltype(zero), decltype(dim)::value>(params, stream);
  });
}

std::tuple<Tensor, Tensor> fwd(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, double softmax_scale) {
  const Shape s = checked_shape(q_in, k_in, v_in);
  const DeviceGuard guard(q_in.get_device_index());
  const Tensor q = aligned(q_in), k = aligned(k_in), v = aligned(v_in);
  Tensor out = torch::stable::new_empty(q, {s.batch, s.queries, s.heads, s.head_dim});
  Tensor lse = torch::stable::new_empty(q, {s.batch, s.heads, s.queries}, ScalarType::Float);
  ShortAttentionFwdParams params{};
  params.q = input_view(q);
  params.k = input_view(k);
  params.v = input_view(v);
  params.out = output_view(out);
  params.lse = static_cast<float*>(lse.mutable_data_ptr());
  params.softmax_scale = float(softmax_scale);
  launch_fwd(q, s, params);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> bwd(const Tensor& dout_in, const Tensor& q_in, const Tensor& k_in,
                                       const Tensor& v_in, const Tensor& out_in, const Tensor& lse,
                                       double softmax_scale) {
  const Shape s = checked_shape(q_in, k_in, v_in);
  check_saved(dout_in, out_in, lse, q_in, s);
  const DeviceGuard guard(q_in.get_device_index());
  const Tensor q = aligned(q_in), k = aligned(k_in), v = aligned(v_in), out = aligned(out_in), dout = aligned(dout_in);
  Tensor dq = torch::stable::new_empty(q, {s.batch, s.queries, s.heads, s.head_dim});
  Tensor dk = torch::stable::new_empty(q, {s.batch, s.keys, s.heads, s.head_dim});
  Tensor dv = torch::stable::new_empty(q, {s.batch, s.keys, s.heads, s.head_dim});
  ShortAttentionBwdParams params{};
  params.q = input_view(q);
  params.k = input_view(k);
  params.v = input_view(v);
  params.out = input_view(out);
  params.dout = input_view(dout);
  params.lse = static_cast<const float*>(lse.const_data_ptr());
  params.dq = output_view(dq);
  params.dk = output_view(dk);
  params.dv = output_view(dv);
  params.softmax_scale = float(softmax_scale);
  launch_bwd(q, s, params);
  return {dq, dk, dv};
}

// out is [B, N, H * D].
HeadsOutput merged_view(const Tensor& out, int head_dim) {
  return {out.mutable_data_ptr(), out.stride(0), out.stride(1), head_dim};
}
HeadsInput merged_input(const Tensor& out, int head_dim) {
  return {out.const_data_ptr(), out.stride(0), out.stride(1), head_dim};
}

std::tuple<Tensor, Tensor> qkvpacked_fwd(const Tensor& qkv_in, const std::optional<Tensor>& /*added_bias*/,
                                         double softmax_scale) {
  const Shape s = checked_shape(qkv_in);
  const DeviceGuard guard(qkv_in.get_device_index());
  const Tensor qkv = aligned(qkv_in);
  Tensor out = torch::stable::new_empty(qkv, {s.batch, s.queries, int64_t(s.heads) * s.head_dim});
  Tensor lse = torch::stable::new_empty(qkv, {s.batch, s.heads, s.queries}, ScalarType::Float);
  ShortAttentionFwdParams params{};
  params.q = input_part(qkv, 0);
  params.k = input_part(qkv, 1);
  params.v = input_part(qkv, 2);
  params.out = merged_view(out, s.head_dim);
  params.lse = static_cast<float*>(lse.mutable_data_ptr());
  params.softmax_scale = float(softmax_scale);
  launch_fwd(qkv, s, params);
  return {out, lse};
}

std::tuple<Tensor, Tensor> qkvpacked_bwd(const Tensor& dout_in, const Tensor& qkv_in, const Tensor& out_in,
                                         const Tensor& lse, double softmax_scale, bool needs_bias) {
  const Shape s = checked_shape(qkv_in);
  check_saved(dout_in, out_in, lse, qkv_in, s);
  const DeviceGuard guard(qkv_in.get_device_index());
  const Tensor qkv = aligned(qkv_in), out = aligned(out_in), dout = aligned(dout_in);
  Tensor dqkv = torch::stable::new_empty(qkv, {s.batch, s.queries, 3, s.heads, s.head_dim});
  Tensor dbias = torch::stable::new_empty(qkv, {needs_bias ? s.batch : 0, 3, s.heads, s.head_dim}, ScalarType::Float);
  ShortAttentionBwdParams params{};
  params.q = input_part(qkv, 0);
  params.k = input_part(qkv, 1);
  params.v = input_part(qkv, 2);
  params.out = merged_input(out, s.head_dim);
  params.dout = merged_input(dout, s.head_dim);
  params.lse = static_cast<const float*>(lse.const_data_ptr());
  params.dq = output_part(dqkv, 0);
  params.dk = output_part(dqkv, 1);
  params.dv = output_part(dqkv, 2);
  params.dbias = needs_bias ? static_cast<float*>(dbias.mutable_data_ptr()) : nullptr;
  params.softmax_scale = float(softmax_scale);
  launch_bwd(qkv, s, params);
  return {dqkv, dbias};
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CUDA, m) {
  m.impl("short_attention_fwd", TORCH_BOX(&lgfast::fwd));
  m.impl("short_attention_bwd", TORCH_BOX(&lgfast::bwd));
  m.impl("short_attention_qkvpacked_fwd", TORCH_BOX(&lgfast::qkvpacked_fwd));
  m.impl("short_attention_qkvpacked_bwd", TORCH_BOX(&lgfast::qkvpacked_bwd));
}
