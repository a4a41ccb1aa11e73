// Gradients of short_attention by the products of warpgroups (sm_90a): D = 64, five products, each formed once.
#pragma once

#include "short_attention/bwd_wgmma_copies.cuh"
#include "short_attention/bwd_wgmma_keys.cuh"
#include "short_attention/bwd_wgmma_queries.cuh"

namespace lgfast {

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    short_attention_bwd_wgmma_kernel(const ShortAttentionBwdParams params, const float scale_log2) {
  if constexpr (kHasWarpgroups) {
    const int group = shfl(warp_index(), 0) / kWarpgroupWarps;
    if (group == 0) {
      raise_registers<Traits::kQueryRegisters>();
      take_queries<Traits>(params, scale_log2);
    } else if (group == 1) {
      raise_registers<Traits::kKeyRegisters>();
      take_keys<Traits, false>(params);
    } else if (group == 2) {
      raise_registers<Traits::kKeyRegisters>();
      take_keys<Traits, true>(params);
    } else {
      lower_registers<Traits::kCopyRegisters>();
      copy_heads<Traits>(params);
    }
  }
}

}  // namespace lgfast
