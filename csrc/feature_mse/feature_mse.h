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
  double grad_scale;  // of the stored gradient: 2 * loss_scale * the caller's grad_scale; the weight comes to it
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
constexpr int kFeatureMseFewestThreads = 64, kFeatureMseMostThreads = 384;
constexpr int kFeatureMseThreadsAtOnce = 768;  // of a multiprocessor: 80 registers each
constexpr int kFeatureMseSumThreads = 256;
constexpr int kFeatureMseSlots = 5;      // rows of a map on their way, and the one at work
constexpr int kFeatureMseGridRows = 32;  // that a block walks, about; a student row that is resized counts as two
constexpr int kFeatureMseHaloRows = 2;   // student rows that a part reads before and after its own, at most
constexpr int kFeatureMsePadding = 64;   // bytes between planes of sums, which spread them over the banks

// Byte offsets of a block's shared memory: the maps that are resized, slots for the next rows of those that are not,
// two student rows of sums of the gradient along grid columns, and tables of positions.
struct FeatureMseLayout {
  int student, teacher, student_slots, teacher_slots, sums, student_rows, teacher_rows, column_ranges, column_weights,
      warp_sums, is_last;
};

// How a pair is cut into blocks, one an image, slab of channels and part of the student's rows.
struct FeatureMseCut {
  int slab_log2;    // channels of a block, as a power of two
  int slabs;        // of an image
  int part_rows;    // student rows of a block
  int parts;        // of an image
  int column_taps;  // grid columns that read a student column, at most
  FeatureMseLayout layout;
  int64_t num_bytes;
};

// Scalars on the device, of the loss's type: float, or double for double maps. weight and weighted: nullptr where the
// caller gives no weight.
struct FeatureMseScalars {
  const void* weight;  // factor of the stored gradient; the kernel reads it, so a captured graph follows its changes
  void* loss;
  void* weighted;  // weight * loss
};

// Everything the kernel reads, passed by value.
struct FeatureMseParams {
  FeatureMsePair pairs[kFeatureMseMaxPairs];
  FeatureMseCut cuts[kFeatureMseMaxPairs];
  int first_unit[kFeatureMseMaxPairs + 1];  // pair k owns units [first_unit[k], first_unit[k + 1]) of every image
  int num_pairs;
  int vector_log2;  // neighbouring channels that a thread owns, as a power of two
  int threads;      // of a block
  int smem_bytes;   // of the largest block
  int batch;
  double* partials;   // [units, batch] loss of each block
  uint32_t* counter;  // of blocks that have ended, for the last to add up; 0 between launches. nullptr: a second kernel
  FeatureMseScalars scalars;
};
static_assert(sizeof(FeatureMseParams) <= 4096, "kernel parameters of GPUs before sm_70 and drivers before 12.1");

LGFAST_HOST_DEVICE bool resizes_student(const FeatureMsePair& p) {
  return p.student_h != p.grid_h || p.student_w != p.grid_w;
}
LGFAST_HOST_DEVICE bool resizes_teacher(const FeatureMsePair& p) {
  return p.teacher_h != p.grid_h || p.teacher_w != p.grid_w;
}

inline FeatureMseCut feature_mse_cut(const FeatureMsePair& p, int slab_log2, int threads, int element_bytes) {
  FeatureMseCut cut{};
  const int64_t slab = int64_t{1} << slab_log2;
  const int acc_bytes = element_bytes == 8 ? 8 : 4;
  const auto place = [&](int64_t bytes) {
    const int64_t at = cut.num_bytes;
    cut.num_bytes += round_up(bytes, 16);
    return static_cast<int>(at);
  };
  const bool resizes = resizes_student(p);
  const int64_t slots = int64_t{16} * kFeatureMseSlots * threads;
  cut.slab_log2 = slab_log2;
  cut.slabs = ceil_div(p.channels, 1 << slab_log2);
  cut.part_rows = ceil_div(p.student_h, ceil_div(p.grid_h + (resizes ? 2 * p.student_h : 0), kFeatureMseGridRows));
  cut.parts = ceil_div(p.student_h, cut.part_rows);
  const int copied_rows = smaller(p.student_h, cut.part_rows + smaller(cut.parts - 1, 2) * kFeatureMseHaloRows);
  for (int x = 0; resizes && x < p.student_w; ++x) {
    const TapRange range = tap_range(x, p.student_w, p.grid_w);
    if (range.end - range.begin > cut.column_taps) cut.column_taps = range.end - range.begin;
  }
  cut.layout.student = place(resizes ? slab * copied_rows * p.student_w * element_bytes : 0);
  cut.layout.teacher = place(resizes_teacher(p) ? slab * p.teacher_h * p.teacher_w * element_bytes : 0);
  cut.layout.student_slots = place(resizes ? 0 : slots);
  cut.layout.teacher_slots = place(resizes_teacher(p) ? 0 : slots);
  cut.layout.sums = place(resizes ? 2 * (slab * p.grid_w * acc_bytes + 2 * kFeatureMsePadding) : 0);
  cut.layout.student_rows = place(int64_t{2} * p.grid_h * acc_bytes);
  cut.layout.teacher_rows = place(int64_t{2} * p.grid_h * acc_bytes);
  cut.layout.column_ranges = place(resizes ? int64_t{8} * p.student_w : 0);
  cut.layout.column_weights = place(int64_t{p.student_w} * cut.column_taps * acc_bytes);
  cut.layout.warp_sums = place(kFeatureMseMostThreads / 32 * int64_t{sizeof(double)});
  cut.layout.is_last = place(sizeof(int));
  return cut;
}

// Whether a map of these strides and addresses can be read `vector` channels at once.
inline bool takes_vectors(const FeatureMsePair& p, int vector, int element_bytes) {
  bool fits = true;
  for (const int64_t elements : {int64_t{p.channels}, p.student_image_stride, p.student_token_stride,
                                 p.teacher_image_stride, p.teacher_row_stride, p.teacher_column_stride}) {
    fits = fits && elements % vector == 0;
  }
  const int64_t student_span = p.student_h * p.student_w * p.student_token_stride;
  const int64_t teacher_span = p.teacher_h * p.teacher_row_stride + p.teacher_w * p.teacher_column_stride;
  fits = fits && student_span < (int64_t{1} << 31) && teacher_span < (int64_t{1} << 31);  // 32 bits hold offsets
  for (const void* data : {p.student, p.teacher, static_cast<const void*>(p.grad)}) {
    fits = fits && reinterpret_cast<uintptr_t>(data) % (vector * element_bytes) == 0;
  }
  return fits;
}

// Threads of a block that serve every pair: one a grid column and vector, of two vectors of channels, which make the 32
// bytes that memory moves at once.
inline int feature_mse_threads(const FeatureMseParams& params) {
  int threads = kFeatureMseFewestThreads;
  for (int k = 0; k < params.num_pairs; ++k) {
    const FeatureMsePair& p = params.pairs[k];
    const int items = p.grid_w * smaller(2, ceil_div(p.channels, 1 << params.vector_log2));
    if (items > threads) threads = round_up(items, 32);
  }
  return smaller(threads, kFeatureMseMostThreads);
}

// Chooses the channels of a block: as many as its threads own and as leave room for other blocks, but at least two
// vectors. Returns false where not even one vector has room, or where a student has more grid columns than threads.
inline bool cut_feature_mse(FeatureMseCut& cut, const FeatureMseParams& params, const FeatureMsePair& p,
                            int element_bytes, int max_smem) {
  const int good_smem = max_smem / (kFeatureMseThreadsAtOnce / params.threads) - 1024;
  int groups_log2 = 0;
  while (((p.grid_w << groups_log2) << 1) <= params.threads && (1 << (groups_log2 + params.vector_log2)) < p.channels)
    ++groups_log2;
  do {
    cut = feature_mse_cut(p, groups_log2 + params.vector_log2, params.threads, element_bytes);
  } while (cut.num_bytes > (groups_log2 > 1 ? good_smem : max_smem) && --groups_log2 >= 0);
  return cut.num_bytes <= max_smem && (!resizes_student(p) || p.grid_w <= params.threads);
}

inline bool cut_feature_mse_pairs(FeatureMseParams& params, int element_bytes, int max_smem) {
  params.threads = feature_mse_threads(params);
  params.smem_bytes = params.first_unit[0] = 0;
  for (int k = 0; k < params.num_pairs; ++k) {
    FeatureMseCut& cut = params.cuts[k];
    if (!cut_feature_mse(cut, params, params.pairs[k], element_bytes, max_smem)) return false;
    if (cut.num_bytes > params.smem_bytes) params.smem_bytes = static_cast<int>(cut.num_bytes);
    params.first_unit[k + 1] = params.first_unit[k] + cut.slabs * cut.parts;
  }
  return true;
}

// Splits the pairs over blocks, one (image, channel slab, part of the rows) each; by channels, not vectors, where those
// do not fit. max_smem: bytes a block of the GPU can have. False where a pair does not fit.
inline bool plan_feature_mse(FeatureMseParams& params, int64_t batch, int element_bytes, int max_smem) {
  params.batch = static_cast<int>(batch);
  const int most = element_bytes == 2 ? 3 : element_bytes == 4 ? 2 : 1;
  params.vector_log2 = most;
  for (int k = 0; k < params.num_pairs; ++k) {
    if (!takes_vectors(params.pairs[k], 1 << most, element_bytes)) params.vector_log2 = 0;
  }
  if (cut_feature_mse_pairs(params, element_bytes, max_smem)) return true;
  if (params.vector_log2 == 0) return false;
  params.vector_log2 = 0;
  return cut_feature_mse_pairs(params, element_bytes, max_smem);
}

inline int64_t feature_mse_blocks(const FeatureMseParams& params) {
  return int64_t{params.batch} * params.first_unit[params.num_pairs];
}

// T: float, double, fp16, bf16. Both return nullptr or the text of the launch error.
template <typename T>
const char* launch_feature_mse_fwd(const FeatureMseParams& params, void* stream);
// out[i] = grad[i] * dloss * scale, n elements; dloss has the type of loss.
template <typename T>
const char* launch_feature_mse_bwd(const void* grad, const void* dloss, void* out, int64_t n, double scale,
                                   void* stream);

}  // namespace lgfast
