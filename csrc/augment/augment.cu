// augment_plan, and how augment is launched. Compiled, as instances/, without contraction of a * b + c, as the CPU
// kernel is.
#include <algorithm>

#include "augment/augment_layout.h"
#include "augment/augment_order.cuh"
#include "augment/augment_plan.cuh"
#include "common/float16.h"

namespace lgfast {

constexpr int kWorkspaceBlocks = 4;  // a multiprocessor, where images are worked on in global memory

AugmentLaunch plan_augment(int64_t batch, int image_size) {
  const int64_t num_bytes = augment_layout(image_size).num_bytes;
  if (num_bytes <= max_smem_bytes()) {
    const int64_t order_bytes = batch > num_multiprocessors() ? batch * int64_t(sizeof(int32_t)) : 0;
    return {int(batch), int(num_bytes), 0, order_bytes};
  }
  const int blocks = int(std::min<int64_t>(batch, kWorkspaceBlocks * num_multiprocessors()));
  return {blocks, 0, blocks * num_bytes, 0};
}

const char* launch_augment_plan(const AugmentPlanParams& params, void* stream) {
  return launch_augment_plan_kernel(params, stream);
}

const char* launch_augment_order(const AugmentParams& params, int32_t* order, void* stream) {
  return launch_augment_order_kernel(params, order, stream);
}

const char* launch_augment(const AugmentParams& params, AugmentDtype dtype, const AugmentLaunch& plan, void* workspace,
                           void* stream) {
  switch (dtype) {
    case AugmentDtype::kFloat: return launch_augment_kernel<float>(params, plan, kAugmentThreads, workspace, stream);
    case AugmentDtype::kBFloat16: return launch_augment_kernel<bf16>(params, plan, kAugmentThreads, workspace, stream);
    default: return launch_augment_kernel<fp16>(params, plan, kAugmentThreads, workspace, stream);
  }
}

}  // namespace lgfast
