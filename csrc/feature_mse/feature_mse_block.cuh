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

// What a block works on: some student rows and channels of an image of a pair, and its shared memory.
template <typename T, int kVector>
struct FeatureMseBlock {
  using Acc = typename Accumulate<T>::type;
  int64_t image;
  int first_row, end_row;                        // of the student
  int first_copied;                              // row of the student, where it is resized
  int first_channel, channels;                   // channels: fewer than the slab in the last block of an image
  int slab, groups_log2;                         // groups of kVector channels
  T *student, *teacher;                          // [h, w, slab], of maps that are resized
  unsigned char *student_slots, *teacher_slots;  // [slots, threads] of 16 bytes, of maps that are not
  Acc* sums;                                     // two student rows of Planes
  Position<Acc>*student_rows, *teacher_rows;
  int column_taps;
  Acc* column_weights;       // [student_w, column_taps] of those grid columns
  TapRange* column_ranges;   // of each student column the grid columns that read it
  unsigned char* warp_sums;  // a double or an Acc of each warp
  int* is_last;
  Acc grad_scale;  // of the stored gradient, weight included

  // Sums of a student row along the grid columns; the row after the next has the same place.
  __device__ __forceinline__ Planes<kVector, Acc> sums_of(int row, int grid_w) const {
    using Sums = Planes<kVector, Acc>;
    const int stride = ((grid_w << groups_log2) * Sums::kValues) + kFeatureMsePadding / static_cast<int>(sizeof(Acc));
    return {sums + row % 2 * Sums::kPieces * stride, stride};
  }
};

template <typename T, int kVector>
__device__ __forceinline__ FeatureMseBlock<T, kVector> feature_mse_block(const FeatureMseParams& params, int k) {
  constexpr int kVectorLog2 = kVector == 8 ? 3 : kVector == 4 ? 2 : kVector == 2 ? 1 : 0;
  using Acc = typename Accumulate<T>::type;
  const FeatureMseCut& cut = params.cuts[k];
  FeatureMseBlock<T, kVector> block;
  block.slab = 1 << cut.slab_log2;
  block.groups_log2 = cut.slab_log2 - kVectorLog2;
  const FeatureMsePair& p = params.pairs[k];
  int part = block_index_y() - params.first_unit[k], slab = 0;
  for (; part >= cut.parts; part -= cut.parts) ++slab;
  block.image = block_index();
  block.first_row = part * cut.part_rows;
  block.end_row = smaller(block.first_row + cut.part_rows, p.student_h);
  block.first_copied = block.first_row > kFeatureMseHaloRows ? block.first_row - kFeatureMseHaloRows : 0;
  block.first_channel = slab << cut.slab_log2;
  block.channels = smaller(p.channels - block.first_channel, block.slab);
  const FeatureMseLayout& layout = cut.layout;
  unsigned char* memory = dynamic_smem();
  block.student = reinterpret_cast<T*>(memory + layout.student);
  block.teacher = reinterpret_cast<T*>(memory + layout.teacher);
  block.student_slots = memory + layout.student_slots;
  block.teacher_slots = memory + layout.teacher_slots;
  block.sums = reinterpret_cast<Acc*>(memory + layout.sums);
  block.student_rows = reinterpret_cast<Position<Acc>*>(memory + layout.student_rows);
  block.teacher_rows = reinterpret_cast<Position<Acc>*>(memory + layout.teacher_rows);
  block.column_taps = cut.column_taps;
  block.column_weights = reinterpret_cast<Acc*>(memory + layout.column_weights);
  block.column_ranges = reinterpret_cast<TapRange*>(memory + layout.column_ranges);
  block.warp_sums = memory + layout.warp_sums;
  block.is_last = reinterpret_cast<int*>(memory + layout.is_last);
  const auto* weight = static_cast<const Acc*>(params.scalars.weight);
  block.grad_scale = static_cast<Acc>(p.grad_scale) * (weight != nullptr ? *weight : Acc(1));
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

// Starts copying the block's channels of a map's rows [first, end) to shared memory.
template <typename T, int kVector>
__device__ __forceinline__ void start_copy(const FeatureMseBlock<T, kVector>& block,
                                           const GlobalMap<T, MapOffset<kVector>>& map, int first, int end, int width,
                                           T* to) {
  const int num_vectors = ((end - first) * width) << block.groups_log2;
  const bool is_dense = map.row_stride == width * map.column_stride;  // one row after the other
  const T* data = map.data + first * map.row_stride;
  for (int i = thread_index(); i < num_vectors; i += block_size()) {
    const int c = (i & ((1 << block.groups_log2) - 1)) * kVector;
    const uint32_t pixel = uint32_t(i) >> block.groups_log2, y = is_dense ? 0 : pixel / uint32_t(width);
    if (c >= block.channels) continue;
    const T* from = data + (y * map.row_stride + (pixel - y * width) * map.column_stride + c);
    if constexpr (kVector == 1) {
      to[i] = *from;
    } else {
      cp_async_16(smem_address(to + i * kVector), from, true);
    }
  }
}

template <typename T, int kVector>
__device__ __forceinline__ void fill_tables(const FeatureMsePair& p, const FeatureMseBlock<T, kVector>& block) {
  using Acc = typename Accumulate<T>::type;
#pragma unroll 1  // few steps, whose number takes a division to find
  for (int y = thread_index(); resizes_teacher(p) && y < p.grid_h; y += block_size()) {
    block.teacher_rows[y] = position_of<Acc>(y, p.teacher_h, p.teacher_scale_h);
  }
  if (!resizes_student(p)) return;
#pragma unroll 1
  for (int y = thread_index(); y < p.grid_h; y += block_size()) {
    block.student_rows[y] = position_of<Acc>(y, p.student_h, p.student_scale_h);
  }
  const Acc scale = static_cast<Acc>(p.student_scale_w);
#pragma unroll 1
  for (int column = thread_index(); column < p.student_w; column += block_size()) {
    const TapRange xs = tap_range(column, p.student_w, p.grid_w);
    block.column_ranges[column] = xs;
#pragma unroll 1
    for (int x = xs.begin; x < xs.end; ++x) {
      block.column_weights[column * block.column_taps + x - xs.begin] =
          tap_weight(scaled_tap(x, p.student_w, scale), column);
    }
  }
}

}  // namespace lgfast
