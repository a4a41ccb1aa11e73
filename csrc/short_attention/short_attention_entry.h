// The entry points of short_attention, the same on both devices: they check, allocate and make views, then call
// Device::run.
//
// Device has:
//   Guard                   a type, constructed from q before anything is allocated
//   readable(x)             returns x, or a copy of x that the device's kernels can read
//   run(params, q, shape)   runs forward or backward, by the type of params
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "common/check.h"
#include "short_attention/short_attention.h"

namespace lgfast {

struct AttentionShape {
  int batch, queries, keys, heads, head_dim;
};

// Views of a [B, N, H, D] tensor.
inline HeadsInput input_view(const torch::stable::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}
inline HeadsOutput output_view(const torch::stable::Tensor& x) {
  return {x.mutable_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

// Part 0, 1 or 2 (q, k, v) of a packed [B, N, 3, H, D] tensor.
inline HeadsInput input_part(const torch::stable::Tensor& x, int part) {
  const int64_t offset = part * x.stride(2) * x.element_size();
  return {static_cast<const char*>(x.const_data_ptr()) + offset, x.stride(0), x.stride(1), x.stride(3)};
}
inline HeadsOutput output_part(const torch::stable::Tensor& x, int part) {
  const int64_t offset = part * x.stride(2) * x.element_size();
  return {static_cast<char*>(x.mutable_data_ptr()) + offset, x.stride(0), x.stride(1), x.stride(3)};
}

// Views of a [B, N, H * D] tensor.
inline HeadsInput merged_input(const torch::stable::Tensor& x, int head_dim) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), head_dim};
}
inline HeadsOutput merged_output(const torch::stable::Tensor& x, int head_dim) {
  return {x.mutable_data_ptr(), x.stride(0), x.stride(1), head_dim};
}

inline void check_attention_like(const char* name, const torch::stable::Tensor& x, const torch::stable::Tensor& q) {
  constexpr const char* op = "short_attention";
  LGFAST_CHECK(x.scalar_type() == q.scalar_type(), op, name, " must have q's dtype ",
               torch::headeronly::toString(q.scalar_type()), ", got ", torch::headeronly::toString(x.scalar_type()));
  check_same_device(op, name, x, "q", q);
}

inline AttentionShape attention_shape(const torch::stable::Tensor& q, const torch::stable::Tensor& k,
                                      const torch::stable::Tensor& v) {
  constexpr const char* op = "short_attention";
  LGFAST_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, op, "q, k, v must be [B, N, H, D], got ", shape(q), ", ",
               shape(k), ", ", shape(v));
  bool fits = q.size(0) == k.size(0) && q.size(2) == k.size(2) && q.size(3) == k.size(3);
  for (int64_t i = 0; i < 4; ++i) fits = fits && k.size(i) == v.size(i);
  LGFAST_CHECK(fits, op, "k and v must have q's batch, heads and head dim, got ", shape(q), ", ", shape(k), ", ",
               shape(v));
  check_attention_like("k", k, q);
  check_attention_like("v", v, q);
  const AttentionShape s{int(q.size(0)), int(q.size(1)), int(k.size(1)), int(q.size(2)), int(q.size(3))};
  LGFAST_CHECK(s.queries >= 1 && s.keys >= 1, op, "there must be queries and keys, got ", s.queries, " and ", s.keys);
  return s;
}

inline AttentionShape attention_shape(const torch::stable::Tensor& qkv) {
  constexpr const char* op = "short_attention";
  LGFAST_CHECK(qkv.dim() == 5 && qkv.size(2) == 3, op, "qkv must be [B, N, 3, H, D], got ", shape(qkv));
  const AttentionShape s{int(qkv.size(0)), int(qkv.size(1)), int(qkv.size(1)), int(qkv.size(3)), int(qkv.size(4))};
  LGFAST_CHECK(s.queries >= 1, op, "there must be tokens, got ", s.queries);
  return s;
}

// Checks what backward gets besides q, k, v: out and dout of one shape, and lse [B, H, N].
inline void check_saved(const torch::stable::Tensor& dout, const torch::stable::Tensor& out,
                        const torch::stable::Tensor& lse, const torch::stable::Tensor& q, const AttentionShape& s) {
  constexpr const char* op = "short_attention";
  check_attention_like("dout", dout, q);
  check_attention_like("out", out, q);
  LGFAST_CHECK(shape(dout) == shape(out) && out.numel() == int64_t(s.batch) * s.queries * s.heads * s.head_dim, op,
               "dout must have the shape of out, got ", shape(dout), " and ", shape(out));
  LGFAST_CHECK(lse.scalar_type() == torch::headeronly::ScalarType::Float && lse.is_contiguous() &&
                   lse.device() == q.device() && lse.numel() == int64_t(s.batch) * s.heads * s.queries,
               op, "lse must be the contiguous float32 [B, H, N] of forward, got ", shape(lse));
}

template <typename Params>
void set_sizes(Params& params, const AttentionShape& s, double softmax_scale) {
  params.batch = s.batch;
  params.heads = s.heads;
  params.num_queries = s.queries;
  params.num_keys = s.keys;
  params.softmax_scale = float(softmax_scale);
}

inline torch::stable::Tensor new_float32(const torch::stable::Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, torch::headeronly::ScalarType::Float);
}

template <typename Device>
struct ShortAttention {
  using Tensor = torch::stable::Tensor;

  static std::tuple<Tensor, Tensor> fwd(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                        double softmax_scale) {
    const AttentionShape s = attention_shape(q_in, k_in, v_in);
    const typename Device::Guard guard(q_in);
    const Tensor q = Device::readable(q_in), k = Device::readable(k_in), v = Device::readable(v_in);
    Tensor out = torch::stable::new_empty(q, {s.batch, s.queries, s.heads, s.head_dim});
    Tensor lse = new_float32(q, {s.batch, s.heads, s.queries});
    ShortAttentionFwdParams params{};
    params.q = input_view(q);
    params.k = input_view(k);
    params.v = input_view(v);
    params.out = output_view(out);
    run_fwd(params, lse, q, s, softmax_scale);
    return {out, lse};
  }

  static std::tuple<Tensor, Tensor, Tensor> bwd(const Tensor& dout_in, const Tensor& q_in, const Tensor& k_in,
                                                const Tensor& v_in, const Tensor& out_in, const Tensor& lse,
                                                double softmax_scale) {
    const AttentionShape s = attention_shape(q_in, k_in, v_in);
    check_saved(dout_in, out_in, lse, q_in, s);
    const typename Device::Guard guard(q_in);
    const Tensor q = Device::readable(q_in), k = Device::readable(k_in), v = Device::readable(v_in);
    const Tensor out = Device::readable(out_in), dout = Device::readable(dout_in);
    Tensor dq = torch::stable::new_empty(q, {s.batch, s.queries, s.heads, s.head_dim});
    Tensor dk = torch::stable::new_empty(q, {s.batch, s.keys, s.heads, s.head_dim});
    Tensor dv = torch::stable::new_empty(q, {s.batch, s.keys, s.heads, s.head_dim});
    ShortAttentionBwdParams params{};
    params.q = input_view(q);
    params.k = input_view(k);
    params.v = input_view(v);
    params.out = input_view(out);
    params.dout = input_view(dout);
    params.dq = output_view(dq);
    params.dk = output_view(dk);
    params.dv = output_view(dv);
    run_bwd(params, lse, q, s, softmax_scale);
    return {dq, dk, dv};
  }

  static std::tuple<Tensor, Tensor> qkvpacked_fwd(const Tensor& qkv_in, const std::optional<Tensor>& /*added_bias*/,
                                                  double softmax_scale) {
    const AttentionShape s = attention_shape(qkv_in);
    const typename Device::Guard guard(qkv_in);
    const Tensor qkv = Device::readable(qkv_in);
    Tensor out = torch::stable::new_empty(qkv, {s.batch, s.queries, int64_t(s.heads) * s.head_dim});
    Tensor lse = new_float32(qkv, {s.batch, s.heads, s.queries});
    ShortAttentionFwdParams params{};
    params.q = input_part(qkv, 0);
    params.k = input_part(qkv, 1);
    params.v = input_part(qkv, 2);
    params.out = merged_output(out, s.head_dim);
    run_fwd(params, lse, qkv, s, softmax_scale);
    return {out, lse};
  }

  static std::tuple<Tensor, Tensor> qkvpacked_bwd(const Tensor& dout_in, const Tensor& qkv_in, const Tensor& out_in,
                                                  const Tensor& lse, double softmax_scale, bool needs_dbias) {
    const AttentionShape s = attention_shape(qkv_in);
    check_saved(dout_in, out_in, lse, qkv_in, s);
    const typename Device::Guard guard(qkv_in);
    const Tensor qkv = Device::readable(qkv_in), out = Device::readable(out_in), dout = Device::readable(dout_in);
    Tensor dqkv = torch::stable::new_empty(qkv, {s.batch, s.queries, 3, s.heads, s.head_dim});
    Tensor dbias = new_float32(qkv, {needs_dbias ? s.batch : 0, 3, s.heads, s.head_dim});
    ShortAttentionBwdParams params{};
    params.q = input_part(qkv, 0);
    params.k = input_part(qkv, 1);
    params.v = input_part(qkv, 2);
    params.out = merged_input(out, s.head_dim);
    params.dout = merged_input(dout, s.head_dim);
    params.dq = output_part(dqkv, 0);
    params.dk = output_part(dqkv, 1);
    params.dv = output_part(dqkv, 2);
    params.dbias = needs_dbias ? static_cast<float*>(dbias.mutable_data_ptr()) : nullptr;
    run_bwd(params, lse, qkv, s, softmax_scale);
    return {dqkv, dbias};
  }

 private:
  static void run_fwd(ShortAttentionFwdParams& params, Tensor& lse, const Tensor& q, const AttentionShape& s,
                      double softmax_scale) {
    params.lse = static_cast<float*>(lse.mutable_data_ptr());
    set_sizes(params, s, softmax_scale);
    Device::run(params, q, s);
  }

  static void run_bwd(ShortAttentionBwdParams& params, const Tensor& lse, const Tensor& q, const AttentionShape& s,
                      double softmax_scale) {
    params.lse = static_cast<const float*>(lse.const_data_ptr());
    set_sizes(params, s, softmax_scale);
    Device::run(params, q, s);
  }
};

}  // namespace lgfast
