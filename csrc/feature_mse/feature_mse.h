// Sizes, strides, work split and launchers of feature_mse; no torch types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "common/arithmetic.h"
#include "feature_mse/bilinear.h"

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
  double student_scale_h, student_scale_w, teacher_scale_h, teacher_scale_w;  // sides of the map over the grid's
  double loss_scale;                                                          // 1 / (B * C * grid_h * grid_w)
  double grad_scale;  // of the stored gradient: 2 * loss_scale * the caller's grad_scale
};

// Grid and scales of a pair whose sizes are set. An empty batch gives loss 0.
inline void complete_feature_mse_pair(FeatureMsePair& p, int64_t batch, double grad_scale) {
  p.grid_h = p.student_h > p.teacher_h ? p.student_h : p.teacher_h;
  p.grid_w = p.student_w > p.teacher_w ? p.student_w : p.teacher_w;
  p.student_scale_h = static_cast<double>(p.student_h) / p.grid_h;
  p.student_scale_w = static_cast<double>(p.student_w) / p.grid_w;
  p.teacher_scale_h = static_cast<double>(p.teacher_h) / p.grid_h;
  p.teacher_scale_w = static_cast<double>(p.teacher_w) / p.grid_w;
  p.loss_scale = 1.0 / (static_cast<double>(batch > 0 ? batch : 1) * p.channels * p.grid_h * p.grid_w);
  p.grad_scale = 2.0 * p.loss_scale * grad_scale;
}

constexpr int kFeatureMseMaxPairs = 16;         // kernel parameters hold them all
constexpr int kFeatureMseMaxSmem = 227 * 1024;  // bytes a block of sm_90 can have
constexpr int kFeatureMseGoodSmem = 56 * 1024;  // four blocks share its multiprocessor
constexpr int kFeatureMseThreads = 256;
constexpr int kFeatureMseMostSegments = 4;  // of grid rows, walked at the same time
constexpr int kFeatureMseMostSlabLog2 = 6;  // 64 channels: the 128 bytes of a bf16 pixel that memory moves at once

// Byte offsets of a block's shared memory: the maps that are resized, the sums of the gradient along grid columns, and
// tables of positions.
struct FeatureMseLayout {
  int student, teacher, sums, student_rows, teacher_rows, column_ranges, column_weights, row_slots, warp_sums;
};

// How a pair is cut into blocks, one an image and slab of channels, and a block's work into segments of grid rows.
// A segment has sums of the student rows that its grid rows read; the first two may be the last two of the segment
// above too, so each segment has slots of its own: row r lies in slot r + 2 * segment.
struct FeatureMseCut {
  int slab_log2;     // channels of a block, as a power of two
  int segments;      // walked at the same time
  int segment_rows;  // of the grid; the last segment may have fewer
  int slots;         // student rows of sums
  int slabs;         // of an image
  int column_taps;   // grid columns that read a student column, at most
  FeatureMseLayout layout;
  int64_t num_bytes;
};

// Everything the kernel reads, passed by value.
struct FeatureMseParams {
  FeatureMsePair pairs[kFeatureMseMaxPairs];
  FeatureMseCut cuts[kFeatureMseMaxPairs];
  int first_block[kFeatureMseMaxPairs + 1];  // pair k owns blocks [first_block[k], first_block[k + 1])
  int num_pairs;
  int smem_bytes;    // of the largest block
  double* partials;  // [first_block[num_pairs]] loss of each block
};
static_assert(sizeof(FeatureMseParams) <= 4096, "kernel parameters of GPUs before sm_70 and drivers before 12.1");

LGFAST_HOST_DEVICE bool resizes_student(const FeatureMsePair& p) {
  return p.student_h != p.grid_h || p.student_w != p.grid_w;
}
LGFAST_HOST_DEVICE bool resizes_teacher(const FeatureMsePair& p) {
  return p.teacher_h != p.grid_h || p.teacher_w != p.grid_w;
}

inline void place_feature_mse(FeatureMseCut& cut, const FeatureMsePair& p, int element_bytes) {
  const int64_t slab = int64_t{1} << cut.slab_log2;
  const int acc_bytes = element_bytes == 8 ? 8 : 4;
  const auto place = [&](int64_t bytes) {
    const int64_t at = cut.num_bytes;
    cut.num_bytes += round_up(bytes, 16);
    return static_cast<int>(at);
  };
  const bool resizes = resizes_student(p);
  cut.num_bytes = 0;
  cut.slabs = ceil_div(p.channels, 1 << cut.slab_log2);
  cut.column_taps = 0;
  for (int x = 0; resizes && x < p.student_w; ++x) {
    const TapRange range = tap_range(x, p.student_w, p.grid_w);
    if (range.end - range.begin > cut.column_taps) cut.column_taps = range.end - range.begin;
  }
  cut.slots = resizes ? p.student_h + 2 * (cut.segments - 1) : 0;
  cut.layout.student = place(resizes ? slab * p.student_h * p.student_w * element_bytes : 0);
  cut.layout.teacher = place(resizes_teacher(p) ? slab * p.teacher_h * p.teacher_w * element_bytes : 0);
  cut.layout.sums = place(slab * cut.slots * p.grid_w * acc_bytes);
  cut.layout.student_rows = place(int64_t{2} * p.grid_h * acc_bytes);
  cut.layout.teacher_rows = place(int64_t{2} * p.grid_h * acc_bytes);
  cut.layout.column_ranges = place(int64_t{8} * p.student_w);
  cut.layout.column_weights = place(int64_t{p.student_w} * cut.column_taps * acc_bytes);
  cut.layout.row_slots = place(int64_t{8} * p.student_h);
  cut.layout.warp_sums = place(kFeatureMseThreads / 32 * acc_bytes);
}

// Grid columns and channels of a segment, as items of `vector` channels; whole warps of them, which walk alike.
LGFAST_HOST_DEVICE int feature_mse_segment_items(const FeatureMsePair& p, int slab_log2, int vector) {
  return round_up(p.grid_w * ceil_div(1 << slab_log2, vector), 32);
}

inline FeatureMseCut feature_mse_cut(const FeatureMsePair& p, int slab_log2, int element_bytes) {
  const int fitting = kFeatureMseThreads / feature_mse_segment_items(p, slab_log2, 16 / element_bytes);
  const int most = smaller(kFeatureMseMostSegments, p.grid_h);
  FeatureMseCut cut{};
  cut.slab_log2 = slab_log2;
  cut.segment_rows = ceil_div(p.grid_h, fitting < 1 ? 1 : smaller(fitting, most));
  cut.segments = ceil_div(p.grid_h, cut.segment_rows);
  place_feature_mse(cut, p, element_bytes);
  return cut;
}

// As many channels as a pixel has, or as leave room for other blocks; not less than one access of 16 bytes moves where
// that has room at all.
inline FeatureMseCut best_feature_mse_cut(const FeatureMsePair& p, int element_bytes, int max_smem) {
  const int good_smem = smaller(max_smem / 2 - 1024, kFeatureMseGoodSmem);  // two blocks at least
  int log2 = kFeatureMseMostSlabLog2;
  for (; log2 > 0; --log2) {
    const int slab = 1 << log2;
    if (slab / 2 >= p.channels) continue;
    if (feature_mse_cut(p, log2, element_bytes).num_bytes <= (slab * element_bytes > 16 ? good_smem : max_smem)) break;
  }
  return feature_mse_cut(p, log2, element_bytes);
}

// Splits the pairs over blocks, one (image, channel slab) each. max_smem: bytes a block of the GPU can have. Returns
// the bytes of one channel that exceed it, or 0.
inline int64_t plan_feature_mse(FeatureMseParams& params, int64_t batch, int element_bytes, int max_smem) {
  params.smem_bytes = 0;
  params.first_block[0] = 0;
  for (int k = 0; k < params.num_pairs; ++k) {
    const FeatureMsePair& p = params.pairs[k];
    params.cuts[k] = best_feature_mse_cut(p, element_bytes, max_smem);
    const int64_t bytes = params.cuts[k].num_bytes;
    if (bytes > max_smem) return bytes;
    if (bytes > params.smem_bytes) params.smem_bytes = static_cast<int>(bytes);
    params.first_block[k + 1] = params.first_block[k] + static_cast<int>(batch) * params.cuts[k].slabs;
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
         {int64_t{p.channels}, int64_t{1} << params.cuts[k].slab_log2, p.student_image_stride, p.student_token_stride,
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
