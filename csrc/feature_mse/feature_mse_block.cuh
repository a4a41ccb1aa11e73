// The data of a block of feature_mse: its maps in global and shared memory, and the tables of the resize.
#pragma once

#include "feature_mse/bilinear.h"
#include "feature_mse/channels.cuh"
#include "feature_mse/feature_mse.h"

namespace lgfast {

// Where a grid row or column lies in a map: between its pixels `low` and the next. At the end of the map weight is 0.
template <typename Acc>
struct alignas(2 * sizeof(Acc)) Position {
  int low;
  Acc weight;
};

template <typename Acc>
__device__ __forceinline__ Position<Acc> position_of(int i, int in, double scale) {
  const Tap<Acc> tap = scaled_tap(i, in, static_cast<Acc>(scale));
  return {tap.low, tap.weight};
}

// The data of a block: an image and some channels of a pair, and its shared memory.
template <typename T, int kVector>
struct FeatureMseBlock {
  using Acc = typename Accumulate<T>::type;
  int64_t image;
  int first_channel, channels;  // channels: fewer than the slab in the last block of an image
  int slab, groups_log2;        // groups of kVector channels
  int segments, segment_rows;
  T *student, *teacher;  // [h, w, slab], of maps that are resized
  Planes<kVector, Acc> sums;
  Position<Acc>*student_rows, *teacher_rows;
  int column_taps;
  Acc* column_weights;      // [student_w, column_taps] of those grid columns
  TapRange* column_ranges;  // of each student column the grid columns that read it
  TapRange* row_slots;      // of each student row the slots of its sums, of which every second is its own
  Acc* warp_sums;
};

template <typename T, int kVector>
__device__ __forceinline__ FeatureMseBlock<T, kVector> feature_mse_block(const FeatureMseParams& params, int k) {
  constexpr int kVectorLog2 = kVector == 8 ? 3 : kVector == 4 ? 2 : kVector == 2 ? 1 : 0;
  using Acc = typename Accumulate<T>::type;
  const FeatureMsePair& p = params.pairs[k];
  const FeatureMseCut& cut = params.cuts[k];
  FeatureMseBlock<T, kVector> block;
  block.slab = 1 << cut.slab_log2;
  block.groups_log2 = cut.slab_log2 - kVectorLog2;
  block.segments = cut.segments;
  block.segment_rows = cut.segment_rows;
  const int local = block_index() - params.first_block[k];
  const int image = cut.slabs == 1 ? local : local / cut.slabs;
  block.image = image;
  block.first_channel = (local - image * cut.slabs) << cut.slab_log2;
  block.channels = smaller(p.channels - block.first_channel, block.slab);
  const FeatureMseLayout& layout = cut.layout;
  unsigned char* memory = dynamic_smem();
  block.student = reinterpret_cast<T*>(memory + layout.student);
  block.teacher = reinterpret_cast<T*>(memory + layout.teacher);
  block.sums = {reinterpret_cast<Acc*>(memory + layout.sums), (cut.slots * p.grid_w) << block.groups_log2};
  block.student_rows = reinterpret_cast<Position<Acc>*>(memory + layout.student_rows);
  block.teacher_rows = reinterpret_cast<Position<Acc>*>(memory + layout.teacher_rows);
  block.column_taps = cut.column_taps;
  block.column_weights = reinterpret_cast<Acc*>(memory + layout.column_weights);
  block.column_ranges = reinterpret_cast<TapRange*>(memory + layout.column_ranges);
  block.row_slots = reinterpret_cast<TapRange*>(memory + layout.row_slots);
  block.warp_sums = reinterpret_cast<Acc*>(memory + layout.warp_sums);
  return block;
}

// The map of an image, or the block's channels of it, in global memory; strides count elements.
template <typename T, typename Offset>
struct GlobalMap {
  const T* data;
  Offset row_stride, column_stride;
};

// Within an image 32 bits hold every offset of maps that are read by vectors; takes_vectors sees to it.
template <int kVector>
using MapOffset = std::conditional_t<kVector == 1, int64_t, int>;

template <typename T, int kVector>
__device__ __forceinline__ GlobalMap<T, MapOffset<kVector>> student_map(const FeatureMsePair& p,
                                                                        const FeatureMseBlock<T, kVector>& block) {
  using Offset = MapOffset<kVector>;
  return {static_cast<const T*>(p.student) + block.image * p.student_image_stride + block.first_channel,
          static_cast<Offset>(p.student_w * p.student_token_stride), static_cast<Offset>(p.student_token_stride)};
}
template <typename T, int kVector>
__device__ __forceinline__ GlobalMap<T, MapOffset<kVector>> teacher_map(const FeatureMsePair& p,
                                                                        const FeatureMseBlock<T, kVector>& block) {
  using Offset = MapOffset<kVector>;
  return {static_cast<const T*>(p.teacher) + block.image * p.teacher_image_stride + block.first_channel,
          static_cast<Offset>(p.teacher_row_stride), static_cast<Offset>(p.teacher_column_stride)};
}

// The block's channels of a map, to shared memory.
template <typename T, int kVector>
__device__ __forceinline__ void copy_map(const FeatureMseBlock<T, kVector>& block,
                                         const GlobalMap<T, MapOffset<kVector>>& map, int height, int width, T* to) {
  const int num_vectors = (height * width) << block.groups_log2;
#pragma unroll 4
  for (int i = thread_index(); i < num_vectors; i += kFeatureMseThreads) {
    const int c = (i & ((1 << block.groups_log2) - 1)) * kVector;
    const uint32_t pixel = uint32_t(i) >> block.groups_log2, y = pixel / uint32_t(width), x = pixel - y * width;
    if (c >= block.channels) continue;
    const T* from = map.data + (y * map.row_stride + x * map.column_stride + c);
    *reinterpret_cast<Raw<T, kVector>*>(to + i * kVector) = load_raw<T, kVector>(from);
  }
}

template <typename T, int kVector>
__device__ __forceinline__ void fill_tables(const FeatureMsePair& p, const FeatureMseBlock<T, kVector>& block) {
  using Acc = typename Accumulate<T>::type;
  for (int y = thread_index(); y < p.grid_h; y += kFeatureMseThreads) {
    block.student_rows[y] = position_of<Acc>(y, p.student_h, p.student_scale_h);
    block.teacher_rows[y] = position_of<Acc>(y, p.teacher_h, p.teacher_scale_h);
  }
  if (!resizes_student(p)) return;
  for (int i = thread_index(); i < p.student_w * block.column_taps; i += kFeatureMseThreads) {
    const int column = uint32_t(i) / uint32_t(block.column_taps), tap = i - column * block.column_taps;
    const TapRange xs = tap_range(column, p.student_w, p.grid_w);
    if (tap == 0) block.column_ranges[column] = xs;
    const Acc scale = static_cast<Acc>(p.student_scale_w);
    block.column_weights[i] = tap_weight(scaled_tap(xs.begin + tap, p.student_w, scale), column);
  }
}

// The slots of each student row's sums, once the positions are there.
template <typename T, int kVector>
__device__ __forceinline__ void find_slots(const FeatureMsePair& p, const FeatureMseBlock<T, kVector>& block) {
  for (int row = thread_index(); row < p.student_h; row += kFeatureMseThreads) {
    TapRange slots{0, 0};
    for (int s = 0; s < block.segments; ++s) {
      const int start = s * block.segment_rows, end = smaller(start + block.segment_rows, p.grid_h);
      if (row < block.student_rows[start].low || row > block.student_rows[end - 1].low + 1) continue;
      const int slot = row + 2 * s;
      slots = {slots.end == 0 ? slot : slots.begin, slot + 1};
    }
    block.row_slots[row] = slots;
  }
}

}  // namespace lgfast
