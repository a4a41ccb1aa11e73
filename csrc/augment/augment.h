// Parameters and launchers of augment_plan and augment. No torch types.
#pragma once

#include <cstdint>

namespace lgfast {

// AUGMENT_OPS of lgfast/spec/augment.py: those of RandAugment in timm's order, then those of other policies; -1 in a
// plan: skipped.
enum class AugmentOp : int {
  kSkip = -1,
  kAutoContrast,
  kEqualize,
  kInvert,
  kRotate,
  kPosterize,
  kSolarize,
  kSolarizeAdd,
  kColor,
  kContrast,
  kBrightness,
  kSharpness,
  kShearX,
  kShearY,
  kTranslateX,
  kTranslateY,
  kTranslateXPixels,
  kTranslateYPixels,
  kGaussianBlur,
  kHue,
};
constexpr int kNumRandAugmentOps = 15;
constexpr int kNumJitterOps = 4;  // brightness, contrast, saturation, hue

enum class AugmentPolicy : int { kRandAugment, kTrivialAugment, kThreeAugment };

// Columns of a plan: PLAN_COLUMNS of lgfast/spec/augment.py, then (op, argument) per slot.
enum PlanColumn {
  kCropTop,
  kCropLeft,
  kCropHeight,
  kCropWidth,
  kShiftY,
  kShiftX,
  kFlip,  // bits of Flip
  kEraseTop,
  kEraseLeft,
  kEraseHeight,
  kEraseWidth,
  kNoiseKey0,
  kNoiseKey1,
  kFirstOp,
};

enum Flip : int { kMirrored = 1, kUpsideDown = 2 };
enum class Resample : int { kNearest, kBilinear, kBicubic };
enum class EraseMode : int { kConst, kRand, kPixel };
enum class AugmentDtype : int { kFloat, kBFloat16, kHalf };

constexpr int kMaxImageSize = 4096;

struct AugmentPlanParams {
  const int32_t* sizes;    // [B, 2] height, width
  const int64_t* indices;  // [B]
  const int64_t* counter;  // [2] seed, epoch
  double* plan;            // [B, num_columns]
  int64_t batch;
  int num_columns;
  int image_size;
  bool whole_image;  // no crop, no erasing: the weak variant
  double crop_scale[2];
  double crop_ratio[2];
  double flip_prob, vertical_flip_prob;
  int max_shift;
  double erase_prob;
  AugmentPolicy policy;
  int num_ops;
  double op_prob;
  double magnitude;
  double magnitude_std;  // infinite: uniform in [0, magnitude]
  double magnitude_max;
  bool increasing;
  double jitter[kNumJitterOps];  // 0: none
};

// What a block makes: of the view of row `row` of the batch, the rows of part `part` of `num_parts` (augment_rows.h).
struct AugmentPart {
  int32_t row;
  int16_t part, num_parts;
};

struct AugmentParams {
  const uint8_t* pixels;     // images back to back, each [h, w, 3]
  const int64_t* offsets;    // [n] first byte of each image
  const int32_t* sizes;      // [n, 2] height, width
  const int64_t* indices;    // [B] image of each row of the batch
  const double* plan;        // [B, num_columns]
  const AugmentPart* parts;  // in the order in which blocks take them, their number as the row of the first; null:
                             // whole views as they come
  void* images;              // [B, 3, S, S], by strides
  void* teacher;             // [B, 3, s, s], by strides; null where teacher_size is 0
  int64_t batch;
  int num_columns;
  int image_size;
  int teacher_size;
  int64_t channel_stride, row_stride, column_stride;  // of images; the image stride is 3 S S
  int64_t teacher_channel_stride, teacher_row_stride, teacher_column_stride;
  Resample resample;
  EraseMode erase_mode;
  int fill[3];
  float mean[3], std[3];
};

// How a batch is launched: one block per image where its working memory fits into shared memory. Else several blocks
// may share an image, and each has working memory of its own in global memory.
struct AugmentLaunch {
  int blocks, smem_bytes;
  int blocks_at_once;  // on the GPU
  int max_parts;       // of an image
  // Bytes of global memory, one after the other; 0: none.
  int64_t workspace_bytes;  // of the blocks, working memory
  int64_t moved_bytes;      // of the blocks, moved pixels
  int64_t parts_bytes;      // AugmentParams::parts
  int64_t memory_bytes() const { return workspace_bytes + moved_bytes + parts_bytes; }
};
AugmentLaunch plan_augment(const AugmentParams& params, AugmentDtype dtype);

// Null, or the text of a CUDA error. memory: as planned, aligned to 128 bytes.
const char* launch_augment_plan(const AugmentPlanParams& params, void* stream);
const char* launch_augment(const AugmentParams& params, AugmentDtype dtype, const AugmentLaunch& launch, void* memory,
                           void* stream);

// One explicit instantiation each in instances/: T in {float, bf16, fp16}. threads: of a block, at most
// kAugmentThreads.
constexpr int kAugmentThreads = 768;
template <typename T>
const char* launch_augment_kernel(const AugmentParams& params, const AugmentLaunch& launch, int threads, void* memory,
                                  void* stream);

}  // namespace lgfast
