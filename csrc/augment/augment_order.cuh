// In which order the blocks of augment take the images of a batch: those that take longest first, so that no
// multiprocessor begins a long one while others have nothing left to do. The images' results do not depend on it.
#pragma once

#include "augment/augment.h"
#include "common/device.cuh"

namespace lgfast {

constexpr int kOrderThreads = 512;
constexpr int kOrderCosts = 64;  // one block sorts by counting

// What an image takes beyond the resize, in parts of 4,000 clocks of an H200 (NOTES.md).
LGFAST_HOST_DEVICE int augment_cost(AugmentOp op) {
  switch (op) {
    case AugmentOp::kRotate: return 27;
    case AugmentOp::kSharpness: return 15;
    case AugmentOp::kShearX:
    case AugmentOp::kShearY: return 12;
    case AugmentOp::kGaussianBlur: return 12;
    case AugmentOp::kAutoContrast:
    case AugmentOp::kEqualize:
    case AugmentOp::kColor:
    case AugmentOp::kHue: return 8;
    case AugmentOp::kTranslateX:
    case AugmentOp::kTranslateY:
    case AugmentOp::kTranslateXPixels:
    case AugmentOp::kTranslateYPixels: return 8;
    case AugmentOp::kContrast: return 6;
    default: return 0;
  }
}

__device__ __forceinline__ int augment_cost(const AugmentParams& p, int b) {
  constexpr double kErased = 1 / 1800.0;  // of a pixel
  const double* row = p.plan + int64_t(b) * p.num_columns;
  int cost = p.erase_mode == EraseMode::kConst ? 0 : int(row[kEraseHeight] * row[kEraseWidth] * kErased);
  for (int column = kFirstOp; column + 1 < p.num_columns; column += 2) {
    cost += augment_cost(AugmentOp(int(row[column])));
  }
  return clamp(cost, 0, kOrderCosts - 1);
}

__global__ void __launch_bounds__(kOrderThreads)
    augment_order_kernel(const __grid_constant__ AugmentParams params, int32_t* order) {
  uint32_t* count = reinterpret_cast<uint32_t*>(dynamic_smem());
  uint32_t* first = count + kOrderCosts;
  const int batch = int(params.batch);
  if (thread_index() < kOrderCosts) count[thread_index()] = 0;
  sync_threads();
  for (int b = thread_index(); b < batch; b += block_size()) atomic_add(count + augment_cost(params, b), 1);
  sync_threads();
  if (thread_index() < kOrderCosts) {
    uint32_t before = 0;
    for (int cost = thread_index() + 1; cost < kOrderCosts; ++cost) before += count[cost];
    first[thread_index()] = before;
  }
  sync_threads();
  for (int b = thread_index(); b < batch; b += block_size()) {
    order[take_slot<true>(first + augment_cost(params, b))] = b;
  }
}

inline const char* launch_augment_order_kernel(const AugmentParams& params, int32_t* order, void* stream) {
  const int smem_bytes = 2 * kOrderCosts * int(sizeof(uint32_t));
  return launch(augment_order_kernel, Grid{1, 1}, kOrderThreads, smem_bytes, stream, params, order);
}

}  // namespace lgfast
