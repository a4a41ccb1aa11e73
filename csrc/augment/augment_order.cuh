// In which order the blocks of augment take the images of a batch, and into how many parts each is divided: those that
// take longest first, so that no multiprocessor begins a long one while others have nothing left to do. The images'
// results do not depend on it.
#pragma once

#include "augment/augment_rows.h"
#include "augment/team.h"
#include "common/device.cuh"

namespace lgfast {

constexpr int kOrderThreads = 512;
constexpr int kOrderCosts = 64;  // one block sorts by counting

// What an image takes, in parts of 4,000 clocks of an H200 (NOTES.md): what each of its parts repeats, and what they
// divide.
struct AugmentCost {
  int repeated, divided;
};

// What an operation takes.
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

// Operations that count all values, and whatever is done before, each part does for the whole image.
__device__ __forceinline__ AugmentCost augment_cost(const AugmentParams& p, int b) {
  constexpr double kErased = 1 / 1800.0;               // of a pixel
  constexpr int kWeights = 3, kResize = 4, kView = 4;  // of every image
  const double* row = p.plan + int64_t(b) * p.num_columns;
  AugmentCost cost = {kWeights, kResize};
  for (int column = kFirstOp; column + 1 < p.num_columns; column += 2) {
    const AugmentOp op = AugmentOp(int(row[column]));
    cost.divided += augment_cost(op);
    if (counts_values(op)) cost = {cost.repeated + cost.divided, 0};
  }
  cost.divided += kView;
  if (p.erase_mode != EraseMode::kConst) cost.divided += int(row[kEraseHeight] * row[kEraseWidth] * kErased);
  return cost;
}

// Into how many parts an image is divided, so that each takes what a multiprocessor's share of the batch does: at least
// a quarter of what it repeats, but where there are more multiprocessors than work. No more than the largest part
// needs: `units` of rows cannot be divided.
LGFAST_HOST_DEVICE int num_parts_of(AugmentCost cost, int share, int max_parts, int units) {
  if (max_parts == 1) return 1;
  const int left = share - cost.repeated, least = ceil_div(cost.repeated, 4);
  const int wanted = share == 0 ? max_parts : ceil_div(cost.divided, left > least ? left : least);
  const int num_parts = clamp(wanted, 1, max_parts);
  return ceil_div(units, ceil_div(units, num_parts));
}

LGFAST_HOST_DEVICE int cost_of_part(AugmentCost cost, int num_parts) {
  return clamp(cost.repeated + cost.divided / num_parts, 0, kOrderCosts - 1);
}

__global__ void __launch_bounds__(kOrderThreads)
    augment_order_kernel(const __grid_constant__ AugmentParams params, int blocks_at_once, int max_parts,
                         AugmentPart* parts) {
  uint32_t* count = reinterpret_cast<uint32_t*>(dynamic_smem());
  uint32_t* first = count + kOrderCosts;
  uint32_t* total = first + kOrderCosts;
  const int batch = int(params.batch);
  if (thread_index() < kOrderCosts) count[thread_index()] = 0;
  if (thread_index() == 0) *total = 0;
  sync_threads();
  if (max_parts > 1) {
    LGFAST_NO_UNROLL
    for (int b = thread_index(); b < batch; b += block_size()) {
      const AugmentCost cost = augment_cost(params, b);
      atomic_add(total, uint32_t(cost.repeated + cost.divided));
    }
    sync_threads();
  }
  const int share = int(*total) / blocks_at_once;
  const int units = max_parts > 1 ? num_units(params.image_size, params.teacher_size) : 1;
  LGFAST_NO_UNROLL
  for (int b = thread_index(); b < batch; b += block_size()) {
    const AugmentCost cost = augment_cost(params, b);
    const int num_parts = num_parts_of(cost, share, max_parts, units);
    atomic_add(count + cost_of_part(cost, num_parts), uint32_t(num_parts));
  }
  sync_threads();
  if (thread_index() < kOrderCosts) {
    uint32_t before = 1;
    for (int cost = thread_index() + 1; cost < kOrderCosts; ++cost) before += count[cost];
    first[thread_index()] = before;
    if (thread_index() == 0) parts->row = int32_t(before + count[0] - 1);
  }
  sync_threads();
  LGFAST_NO_UNROLL
  for (int b = thread_index(); b < batch; b += block_size()) {
    const AugmentCost cost = augment_cost(params, b);
    const int num_parts = num_parts_of(cost, share, max_parts, units);
    AugmentPart* place = parts + take_slots(first + cost_of_part(cost, num_parts), uint32_t(num_parts));
    for (int k = 0; k < num_parts; ++k) {  // those in the middle first, which have the fewest pixels without a source
      place[k] = {b, int16_t((k + num_parts / 2) % num_parts), int16_t(num_parts)};
    }
  }
}

inline const char* launch_augment_order_kernel(const AugmentParams& params, const AugmentLaunch& plan,
                                               AugmentPart* parts, void* stream) {
  const int smem_bytes = (2 * kOrderCosts + 1) * int(sizeof(uint32_t));
  return launch(augment_order_kernel, Grid{1, 1}, kOrderThreads, smem_bytes, stream, params, plan.blocks_at_once,
                plan.max_parts, parts);
}

}  // namespace lgfast
