// augment_plan, and how augment is launched. Compiled, as instances/, without contraction of a * b + c, as the CPU
// kernel is.
#include <algorithm>

#include "augment/augment_layout.h"
#include "augment/augment_order.cuh"
#include "augment/augment_plan.cuh"
#include "common/float16.h"

namespace lgfast {

// Where images are worked on in global memory: blocks of a multiprocessor, and bytes of all blocks, if those suffice
// for an image each, or for one block of each multiprocessor.
constexpr int kWorkspaceBlocks = 2;
constexpr int64_t kWorkspaceBytes = 512 << 20;

AugmentLaunch plan_augment(const AugmentParams& params, AugmentDtype dtype) {
  const int64_t num_bytes = augment_layout(params.image_size).num_bytes;
  const int blocks_at_once = num_multiprocessors();
  const auto parts_bytes = [&](int max_parts) { return (params.batch * max_parts + 1) * int64_t(sizeof(AugmentPart)); };
  if (num_bytes <= max_smem_bytes()) {
    const bool is_sorted = params.batch > blocks_at_once;
    return {int(params.batch), int(num_bytes), blocks_at_once, 1, 0, 0, is_sorted ? parts_bytes(1) : 0};
  }
  const int max_parts = most_parts(params.image_size, params.teacher_size);
  const int64_t moved_bytes = moved_bytes_of(params.image_size, dtype == AugmentDtype::kFloat ? 4 : 2);
  const int64_t least = std::min<int64_t>(params.batch, blocks_at_once);
  const int64_t most = std::max(least, kWorkspaceBytes / (num_bytes + moved_bytes));
  const int blocks = int(std::min({params.batch * max_parts, int64_t(kWorkspaceBlocks) * blocks_at_once, most}));
  return {blocks, 0, blocks_at_once, max_parts, blocks * num_bytes, blocks * moved_bytes, parts_bytes(max_parts)};
}

const char* launch_augment_plan(const AugmentPlanParams& params, void* stream) {
  return launch_augment_plan_kernel(params, stream);
}

const char* launch_augment(const AugmentParams& given, AugmentDtype dtype, const AugmentLaunch& plan, void* memory,
                           void* stream) {
  AugmentParams params = given;
  if (plan.parts_bytes > 0) {
    unsigned char* place = static_cast<unsigned char*>(memory) + plan.workspace_bytes + plan.moved_bytes;
    AugmentPart* parts = reinterpret_cast<AugmentPart*>(place);
    if (const char* error = launch_augment_order_kernel(params, plan, parts, stream)) return error;
    params.parts = parts;
  }
  switch (dtype) {
    case AugmentDtype::kFloat: return launch_augment_kernel<float>(params, plan, kAugmentThreads, memory, stream);
    case AugmentDtype::kBFloat16: return launch_augment_kernel<bf16>(params, plan, kAugmentThreads, memory, stream);
    default: return launch_augment_kernel<fp16>(params, plan, kAugmentThreads, memory, stream);
  }
}

}  // namespace lgfast
