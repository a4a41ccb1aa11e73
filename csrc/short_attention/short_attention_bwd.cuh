// Gradients of short_attention in one kernel: from q, k, v, out, dout and lse to dq, dk, dv.
//
//   p = exp(softmax_scale * q k^T - lse)      dv = p^T dout      dp = dout v^T      delta = rowsum(dout * out)
//   ds = p * (dp - delta)                     dq = softmax_scale * ds k             dk = softmax_scale * ds^T q
//
// A block owns a (batch, head) at a time, so every sum ends on chip: no atomics, no workspace, and two runs agree bit
// for bit. There are three kernels: resident, for as many keys as the registers of a block hold with their gradients;
// the same by the products of warpgroups, where the GPU has them; and streamed, for more keys and for short sequences.
//
// Numerics: as in forward; p and ds are rounded to T before their products. The optional bias sums add up the unrounded
// gradients.
#pragma once

#include <algorithm>

#include "short_attention/short_attention_bwd_resident.cuh"
#include "short_attention/short_attention_bwd_streamed.cuh"
#include "short_attention/short_attention_bwd_wgmma.cuh"

namespace lgfast {

template <typename T, int kHeadDim>
const char* launch_short_attention_bwd(const ShortAttentionBwdParams& params, void* stream) {
  const auto plan = plan_short_attention_bwd(params.num_queries, params.num_keys, kHeadDim, params.dbias != nullptr,
                                             max_smem_bytes(), has_wgmma());
  const Grid resident{std::min(params.batch * params.heads, num_multiprocessors())};
  if constexpr (kHeadDim == 64) {
    if (plan.wgmma)
      return launch(short_attention_bwd_wgmma_kernel<ShortAttentionBwdWgmmaTraits<T>>, resident, plan.warps * kWarpSize,
                    plan.smem_bytes, stream, params, params.softmax_scale * kLog2E);
  }
  if (plan.resident) {
    return launch(short_attention_bwd_resident_kernel<ShortAttentionBwdResidentTraits<T, kHeadDim>>, resident,
                  plan.warps * kWarpSize, plan.smem_bytes, stream, params, plan, params.softmax_scale * kLog2E);
  }
  const Grid grid{params.batch, params.heads};
  return launch(short_attention_bwd_streamed_kernel<ShortAttentionBwdStreamedTraits<T, kHeadDim>>, grid,
                plan.warps * kWarpSize, plan.smem_bytes, stream, params, plan.key_rows, plan.query_rows);
}

}  // namespace lgfast
