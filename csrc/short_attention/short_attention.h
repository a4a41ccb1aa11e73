// short_attention: what crosses from the torch side to the kernels. No torch and no CUDA types.
// Shapes: B batch, N queries, M keys, H heads, D head dim.
#pragma once

#include <cstdint>

namespace lgfast {

// A [B, N, H, D] tensor with D contiguous. Strides in elements, multiples of 8; `data` a multiple of 16 bytes.
template <typename Pointer>
struct HeadsView {
  Pointer data;
  int64_t batch_stride, token_stride, head_stride;
};
using HeadsInput = HeadsView<const void*>;
using HeadsOutput = HeadsView<void*>;

struct ShortAttentionFwdParams {
  HeadsInput q, k, v;
  HeadsOutput out;
  float* lse;  // [B, H, N], natural logarithm of sum(exp(softmax_scale * q k^T))
  int batch, heads, num_queries, num_keys;
  float softmax_scale;  // positive
};

struct ShortAttentionBwdParams {
  HeadsInput q, k, v, out, dout;
  const float* lse;  // [B, H, N]
  HeadsOutput dq, dk, dv;
  float* dbias;  // [B, 3, H, D] sums of dq, dk, dv over their tokens, or nullptr
  int batch, heads, num_queries, num_keys;
  float softmax_scale;
};

// Enqueue the kernel on `stream` (a cudaStream_t). Return nullptr or the text of the launch error. Each file in
// instances/ holds one explicit instantiation: T in {bf16, fp16}, D in {32, 48, 64}.
template <typename T, int kHeadDim>
const char* launch_short_attention_fwd(const ShortAttentionFwdParams& params, void* stream);
template <typename T, int kHeadDim>
const char* launch_short_attention_bwd(const ShortAttentionBwdParams& params, void* stream);

}  // namespace lgfast
