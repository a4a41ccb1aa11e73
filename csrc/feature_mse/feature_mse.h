// Sizes, strides, work split and launchers of feature_mse; no torch types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "common/arithmetic.h"

namespace lgfast {

// One guided pair. Strides count elements; channels are contiguous in every map.
struct FeatureMsePair {
  const void* student;  // [B, student_h * student_w, C]
  const void* teacher;  // [B, C, teacher_h, teacher_w]
  void* grad;           // [B, student_h * student_w, C], contiguous; nullptr: not wanted
  int channels;
  int student_h, student_w;
  int teacher_h, teacher_w;
  int grid_h, grid_w;  // the larger of both; squared differences are taken here
  int64_t student_image_stride, student_token_stride;
  int64_t teacher_image_stride, teacher_row_stride, teacher_column_stride;
  double loss_scale;  // 1 / (B * C * grid_h * grid_w)
  double grad_scale;  // of the stored gradient: 2 * loss_scale * the caller's grad_scale
};

// Grid and scales of a pair whose sizes are set. An empty batch gives loss 0.
inline void complete_feature_mse_pair(FeatureMsePair& p, int64_t batch, double grad_scale) {
  p.grid_h = p.student_h > p.teacher_h ? p.student_h : p.teacher_h;
  p.grid_w = p.student_w > p.teacher_w ? p.student_w : p.teacher_w;
  p.loss_scale = 1.0 / (static_cast<double>(batch > 0 ? batch : 1) * p.channels * p.grid_h * p.grid_w);
  p.grad_scale = 2.0 * p.loss_scale * grad_scale;
}

constexpr int kFeatureMseMaxPairs = 16;          // kernel parameters hold them all
constexpr int kFeatureMseMaxSmem = 227 * 1024;   // bytes a block of sm_90 can have
constexpr int kFeatureMseGoodSmem = 112 * 1024;  // two blocks share its multiprocessor
constexpr int kFeatureMseThreads = 256;

// Everything the kernel reads, passed by value.
struct FeatureMseParams {
  FeatureMsePair pairs[kFeatureMseMaxPairs];
  int first_block[kFeatureMseMaxPairs + 1];  // pair k owns blocks [first_block[k], first_block[k + 1])
  int slab_log2[kFeatureMseMaxPairs];        // channels of a block, as a power of two
  int num_pairs;
  int smem_bytes;    // of the largest block
  double* partials;  // [first_block[num_pairs]] loss of each block
};

// Bytes of a block: the differences of `slab` channels, four tables of resize taps, one sum per warp.
inline int64_t feature_mse_smem_bytes(const FeatureMsePair& p, int slab, int acc_bytes) {
  const int64_t differences = static_cast<int64_t>(p.grid_h) * p.grid_w * slab * acc_bytes;
  return differences + 2 * static_cast<int64_t>(p.grid_h + p.grid_w) * (8 + acc_bytes) +
         kFeatureMseThreads / 32 * acc_bytes;
}

// Channels of a block, as a power of two: 16 (one 32-byte sector of a bf16 pixel), fewer for maps with few channels or
// large grids.
inline int feature_mse_slab_log2(const FeatureMsePair& p, int acc_bytes, int max_smem) {
  const int good_smem = max_smem < kFeatureMseGoodSmem ? max_smem : kFeatureMseGoodSmem;
  int log2 = 4;
  while (log2 > 0 && ((1 << (log2 - 1)) >= p.channels || feature_mse_smem_bytes(p, 1 << log2, acc_bytes) > good_smem))
    --log2;
  return log2;
}

// Splits the pairs over blocks, one (image, channel slab) each. max_smem: bytes a block of the GPU can have. Returns
// the bytes of one channel that exceed it, or 0.
inline int64_t plan_feature_mse(FeatureMseParams& params, int64_t batch, int acc_bytes, int max_smem) {
  params.smem_bytes = 0;
  params.first_block[0] = 0;
  for (int k = 0; k < params.num_pairs; ++k) {
    const FeatureMsePair& p = params.pairs[k];
    const int slab_log2 = feature_mse_slab_log2(p, acc_bytes, max_smem), slab = 1 << slab_log2;
    const int64_t bytes = feature_mse_smem_bytes(p, slab, acc_bytes);
    if (bytes > max_smem) return bytes;
    if (bytes > params.smem_bytes) params.smem_bytes = static_cast<int>(bytes);
    params.slab_log2[k] = slab_log2;
    params.first_block[k + 1] = params.first_block[k] + static_cast<int>(batch) * ceil_div(p.channels, slab);
  }
  return 0;
}

// Whether every map can be read, and the gradient written, `vector` channels at once: sizes, strides and addresses fit,
// and 32 bits hold the offsets within an image.
inline bool takes_vectors(const FeatureMseParams& params, int vector, size_t element_bytes) {
  bool fits = true;
  for (int k = 0; k < params.num_pairs; ++k) {
    const FeatureMsePair& p = params.pairs[k];
    for (const int64_t elements :
         {int64_t{p.channels}, int64_t{1} << params.slab_log2[k], p.student_image_stride, p.student_token_stride,
          p.teacher_image_stride, p.teacher_row_stride, p.teacher_column_stride}) {
      fits = fits && elements % vector == 0;
    }
    const int64_t student_span = p.student_h * p.student_w * p.student_token_stride;
    const int64_t teacher_span = p.teacher_h * p.teacher_row_stride + p.teacher_w * p.teacher_column_stride;
    fits = fits && student_span < (int64_t{1} << 31) && teacher_span < (int64_t{1} << 31);
    for (const void* data : {p.student, p.teacher, static_cast<const void*>(p.grad)}) {
      fits = fits && reinterpret_cast<uintptr_t>(data) % (vector * element_bytes) == 0;
    }
  }
  return fits;
}

// T: float, double, fp16, bf16. Both return nullptr or the text of the launch error.
// loss: one element on the device, float (double for double maps).
template <typename T>
const char* launch_feature_mse_fwd(const FeatureMseParams& params, void* loss, void* stream);
// out[i] = grad[i] * dloss * scale, n elements; dloss has the type of loss.
template <typename T>
const char* launch_feature_mse_bwd(const void* grad, const void* dloss, void* out, int64_t n, double scale,
                                   void* stream);

}  // namespace lgfast
