// augment_plan and augment on the GPU: the algorithm is augment_image.h's, and a block is the team that runs it.
//
// augment: a block makes one image after the other, its planes in shared memory (222 KB for 224 x 224: one block per
// SM) or, where that is too small, in a workspace in global memory. Work is dealt out to threads in strips of four
// pixels, so planes are read and written as 4-byte words. Histograms use atomics on shared memory; integer sums, so two
// runs agree bit for bit. augment_plan: a thread draws one row, in double precision.
#pragma once

#include "augment/augment_image.h"
#include "augment/augment_plan.h"
#include "common/device.cuh"

namespace lgfast {

constexpr int kAugmentThreads = 512;
constexpr int kPlanThreads = 128;

struct BlockTeam {
  static constexpr int kStrip = 4;
  template <typename Strip>
  using Read = Strip;  // one 4-byte load

  template <typename F>
  __device__ __forceinline__ void each(int n, const F& f) const {
    for (int i = thread_index(); i < n; i += block_size()) f(i);
    sync_threads();
  }
  template <typename F>
  __device__ __forceinline__ void grid(int rows, int columns, const F& f) const {
    for (int i = thread_index(); i < rows * columns; i += block_size()) f(i / columns, i % columns);
    sync_threads();
  }
  __device__ __forceinline__ void add(uint32_t* counter, uint32_t value) const { atomic_add(counter, value); }
  // Every thread's value, once per warp.
  __device__ __forceinline__ void add_to_total(uint32_t* total, uint32_t value) const {
    for (int delta = kWarpSize / 2; delta > 0; delta /= 2) value += shfl_down(value, delta);
    if (lane_index() == 0) atomic_add(total, value);
    sync_threads();
  }
};

template <typename T>
__global__ void __launch_bounds__(kAugmentThreads)
    augment_kernel(const AugmentParams params, const AugmentLayout layout, unsigned char* workspace) {
  const BlockTeam team;
  unsigned char* memory = workspace ? workspace + block_index() * layout.num_bytes : dynamic_smem();
  ImageAugmenter<BlockTeam> augmenter(team, params, layout, memory);
  for (int64_t b = block_index(); b < params.batch; b += grid_size()) augmenter.template run<T>(b);
}

__global__ void __launch_bounds__(kPlanThreads) augment_plan_kernel(const AugmentPlanParams params) {
  const int64_t b = int64_t(block_index()) * kPlanThreads + thread_index();
  if (b < params.batch) draw_plan_row(params, b);
}

template <typename T>
const char* launch_augment_kernel(const AugmentParams& params, const AugmentLaunch& plan, int threads, void* workspace,
                                  void* stream) {
  return launch(augment_kernel<T>, Grid{plan.blocks, 1}, threads, plan.smem_bytes, stream, params,
                augment_layout(params.image_size), static_cast<unsigned char*>(workspace));
}

inline const char* launch_augment_plan_kernel(const AugmentPlanParams& params, void* stream) {
  const int blocks = int((params.batch + kPlanThreads - 1) / kPlanThreads);
  return launch(augment_plan_kernel, Grid{blocks, 1}, kPlanThreads, 0, stream, params);
}

}  // namespace lgfast
