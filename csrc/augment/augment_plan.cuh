// augment_plan on the GPU: a thread draws one row, in double precision.
#pragma once

#include "augment/augment_plan.h"
#include "common/arithmetic.h"
#include "common/device.cuh"

namespace lgfast {

constexpr int kPlanThreads = 128;

__global__ void __launch_bounds__(kPlanThreads) augment_plan_kernel(const AugmentPlanParams params) {
  const int64_t b = int64_t(block_index()) * kPlanThreads + thread_index();
  if (b < params.batch) draw_plan_row(params, b);
}

inline const char* launch_augment_plan_kernel(const AugmentPlanParams& params, void* stream) {
  const int blocks = int(ceil_div(params.batch, kPlanThreads));
  return launch(augment_plan_kernel, Grid{blocks, 1}, kPlanThreads, 0, stream, params);
}

}  // namespace lgfast
