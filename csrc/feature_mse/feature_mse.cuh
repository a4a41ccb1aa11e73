// feature_mse: sum over pairs of mean((resize(student) - resize(teacher))^2), and its gradient, in one launch.
//
// Block: one image and up to 64 channels of one pair. The maps that are resized are copied to shared memory. A thread
// owns a column of the common grid and kVector neighbouring channels, 16 bytes where the maps allow it, and walks down
// a segment of the rows: it keeps the two rows it blends, already blended across, and adds up what the differences give
// to the student's rows. So resizing costs an instruction a value, forward and back. The sums of each column go through
// shared memory, where the columns that a student pixel contributed to are gathered. A student that is the grid gets
// its gradient at once.
// Numerics: float (double for double maps), rounded once. No atomics: partial sums have a place per block and are
// added in order by a second kernel, so two runs agree bit for bit.
#pragma once

#include <type_traits>

#include "common/accumulate.h"
#include "common/arithmetic.h"
#include "common/reduce.cuh"
#include "feature_mse/bilinear.h"
#include "feature_mse/feature_mse.h"

namespace lgfast {

template <typename T, int kVector>
struct alignas(kVector * sizeof(T)) Channels {
  T values[kVector];
};

// The same on their way to where they are needed: whole words, which the compiler does not take apart before.
template <typename T, int kVector>
using Raw = std::conditional_t<kVector == 1, Channels<T, 1>, Vector16>;

template <typename T, int kVector>
__device__ __forceinline__ Raw<T, kVector> load_raw(const T* from) {
  return *reinterpret_cast<const Raw<T, kVector>*>(from);
}

template <typename T, int kVector, typename Acc>
__device__ __forceinline__ void unpack(const Raw<T, kVector>& raw, Acc (&to)[kVector]) {
  if constexpr (kVector > 1 && sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      to[2 * i] = unpack_low<T>(raw.words[i]);
      to[2 * i + 1] = unpack_high<T>(raw.words[i]);
    }
  } else {
    Channels<T, kVector> in;
    memcpy(&in, &raw, sizeof(in));
#pragma unroll
    for (int i = 0; i < kVector; ++i) to[i] = Accumulate<T>::load(in.values[i]);
  }
}

template <typename T, int kVector, typename Acc>
__device__ __forceinline__ void load_channels(const T* __restrict__ from, Acc (&to)[kVector]) {
  unpack<T>(load_raw<T, kVector>(from), to);
}

// Factor times the values, rounded once.
template <typename T, int kVector, typename Acc>
__device__ __forceinline__ void store_scaled(T* to, const Acc (&values)[kVector], Acc factor) {
  Channels<T, kVector> out;
#pragma unroll
  for (int i = 0; i < kVector; ++i) out.values[i] = Accumulate<T>::store(values[i] * factor);
  *reinterpret_cast<Channels<T, kVector>*>(to) = out;
}

// Values of `kVector` channels in shared memory, in pieces of 16 bytes, each a plane of its own: threads next to one
// another meet no bank twice. A single value is a piece.
template <int kVector, typename Acc>
struct Planes {
  static constexpr int kPieces = kVector == 1 ? 1 : kVector * static_cast<int>(sizeof(Acc)) / 16;
  static constexpr int kValues = kVector / kPieces;  // of a piece
  Acc* data;
  int num_pieces;  // of a plane

  __device__ __forceinline__ void store(int place, const Acc (&values)[kVector]) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      Acc* to = data + (i * num_pieces + place) * kValues;
      if constexpr (kVector == 1) {
        *to = values[i];
      } else {
        Vector16 words;
        memcpy(&words, values + i * kValues, sizeof(words));
        store_smem_16(smem_address(to), words);
      }
    }
  }
  __device__ __forceinline__ const Acc* at(int place) const { return data + place * kValues; }
  // sum += weight * the values at a place.
  __device__ __forceinline__ void add_to(Acc (&sum)[kVector], const Acc* at, Acc weight) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const auto piece = *reinterpret_cast<const Channels<Acc, kValues>*>(at + i * num_pieces * kValues);
#pragma unroll
      for (int j = 0; j < kValues; ++j) sum[i * kValues + j] += weight * piece.values[j];
    }
  }
};

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

// What a block works on: an image and some channels of a pair, and its shared memory.
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

// A column of a map in shared memory that is resized, walked from its top to its end: rows `low` and the next, blended
// across.
template <typename T, int kVector>
struct ResizedColumn {
  using Acc = typename Accumulate<T>::type;
  const T *left, *right;
  int row_stride, last_row;
  Acc weight;
  Acc value[kVector], step[kVector];  // the row `low`, and how the next one differs

  __device__ __forceinline__ ResizedColumn(const T* map, int height, int width, double scale, int slab, int x, int c)
      : row_stride(width * slab), last_row(height - 1) {
    const Position<Acc> at = position_of<Acc>(x, width, scale);
    left = map + at.low * slab + c;
    right = map + smaller(at.low + 1, width - 1) * slab + c;
    weight = at.weight;
  }
  __device__ __forceinline__ void read(int row, Acc (&to)[kVector]) const {
    Acc other[kVector];
    load_channels(left + row * row_stride, to);
    load_channels(right + row * row_stride, other);
#pragma unroll
    for (int i = 0; i < kVector; ++i) to[i] += weight * (other[i] - to[i]);
  }
  __device__ __forceinline__ void take_next(int low) {
    read(smaller(low + 1, last_row), step);
#pragma unroll
    for (int i = 0; i < kVector; ++i) step[i] -= value[i];
  }
  __device__ __forceinline__ void start(int low) {
    read(low, value);
    take_next(low);
  }
  // To the row after the last.
  __device__ __forceinline__ void advance(int low) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) value[i] += step[i];
    take_next(low);
  }
};

// The sums of a thread along its grid column: of the student rows `row` and row + 1.
template <int kVector, typename Acc>
struct ColumnSums {
  Acc low[kVector] = {}, high[kVector] = {};

  __device__ __forceinline__ void add(const Acc (&difference)[kVector], Acc weight) {
    const Acc rest = Acc(1) - weight;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      low[i] += rest * difference[i];
      high[i] += weight * difference[i];
    }
  }
  __device__ __forceinline__ void move_down() {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      low[i] = high[i];
      high[i] = Acc(0);
    }
  }
};

// A thread on its way down a segment of a grid column: differences, the sum of their squares, and the gradient or,
// where the student is resized, its sums.
template <typename T, int kVector, bool kResizesStudent, bool kResizesTeacher>
struct ColumnWalk {
  using Acc = typename Accumulate<T>::type;
  using Values = Raw<T, kVector>;
  const FeatureMsePair& p;
  const FeatureMseBlock<T, kVector>& block;
  ResizedColumn<T, kVector> student, teacher;
  ColumnSums<kVector, Acc> sums;
  int student_row, teacher_row;
  int first_place;  // of the sums of row 0 in this segment
  T* grad;
  Acc grad_scale, squares = 0;

  __device__ __forceinline__ ColumnWalk(const FeatureMsePair& p, const FeatureMseBlock<T, kVector>& block, int segment,
                                        int y, int x, int c)
      : p(p),
        block(block),
        student(block.student, p.student_h, p.student_w, p.student_scale_w, block.slab, x, c),
        teacher(block.teacher, p.teacher_h, p.teacher_w, p.teacher_scale_w, block.slab, x, c),
        student_row(block.student_rows[y].low),
        teacher_row(block.teacher_rows[y].low),
        first_place(((2 * segment * p.grid_w + x) << block.groups_log2) + c / kVector),
        grad(static_cast<T*>(p.grad)),
        grad_scale(static_cast<Acc>(p.grad_scale)) {
    if constexpr (kResizesStudent) {
      student.start(student_row);
    } else if (grad != nullptr) {
      grad += block.image * p.student_h * p.student_w * p.channels +
              static_cast<int64_t>(y * p.student_w + x) * p.channels + block.first_channel + c;
    }
    if constexpr (kResizesTeacher) teacher.start(teacher_row);
  }

  __device__ __forceinline__ void store_sums(int row, const Acc (&values)[kVector]) const {
    block.sums.store(first_place + ((row * p.grid_w) << block.groups_log2), values);
  }

  // Grid row y, whose values in the maps that are not resized are `own` and `other`.
  __device__ __forceinline__ void take_row(int y, const Values& own, const Values& other) {
    Acc difference[kVector], weight = 0;
    if constexpr (kResizesStudent) {
      const Position<Acc> at = block.student_rows[y];
      weight = at.weight;
      if (at.low != student_row) {
        store_sums(student_row, sums.low);
        sums.move_down();
        student.advance(at.low);
        student_row = at.low;
      }
    }
    if constexpr (kResizesStudent) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) difference[i] = student.value[i] + weight * student.step[i];
    } else {
      unpack<T>(own, difference);
    }
    Acc theirs[kVector];
    if constexpr (kResizesTeacher) {
      const Position<Acc> at = block.teacher_rows[y];
      if (at.low != teacher_row) {
        teacher.advance(at.low);
        teacher_row = at.low;
      }
#pragma unroll
      for (int i = 0; i < kVector; ++i) theirs[i] = teacher.value[i] + at.weight * teacher.step[i];
    } else {
      unpack<T>(other, theirs);
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      difference[i] -= theirs[i];
      squares += difference[i] * difference[i];
    }
    if constexpr (kResizesStudent) {
      sums.add(difference, weight);
    } else if (grad != nullptr) {
      store_scaled<T>(grad, difference, grad_scale);
      grad += p.student_w * p.channels;
    }
  }

  __device__ __forceinline__ void finish() const {
    if constexpr (!kResizesStudent) return;
    store_sums(student_row, sums.low);
    if (student_row + 1 < p.student_h) store_sums(student_row + 1, sums.high);
  }
};

// Walks a segment of a column; returns the sum of its squares.
template <typename T, int kVector, bool kResizesStudent, bool kResizesTeacher>
__device__ __forceinline__ typename Accumulate<T>::type walk_column(const FeatureMsePair& p,
                                                                    const FeatureMseBlock<T, kVector>& block,
                                                                    int segment, int x, int c) {
  constexpr int kAhead = 2;  // rows whose values are on their way together
  using Values = Raw<T, kVector>;
  int y = segment * block.segment_rows;
  const int end = smaller(y + block.segment_rows, p.grid_h);
  const auto student = student_map(p, block), teacher = teacher_map(p, block);
  const T* from_student = student.data + (y * student.row_stride + x * student.column_stride + c);
  const T* from_teacher = teacher.data + (y * teacher.row_stride + x * teacher.column_stride + c);
  ColumnWalk<T, kVector, kResizesStudent, kResizesTeacher> walk(p, block, segment, y, x, c);
#pragma unroll 1
  for (; y < end; y += kAhead) {
    Values own[kAhead], others[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (y + k >= end) continue;
      if constexpr (!kResizesStudent) own[k] = load_raw<T, kVector>(from_student);
      if constexpr (!kResizesTeacher) others[k] = load_raw<T, kVector>(from_teacher);
      from_student += student.row_stride;
      from_teacher += teacher.row_stride;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (y + k < end) walk.take_row(y + k, own[k], others[k]);
    }
  }
  walk.finish();
  return walk.squares;
}

template <typename T, int kVector, bool kResizesStudent, bool kResizesTeacher>
__device__ __forceinline__ typename Accumulate<T>::type walk_columns(const FeatureMsePair& p,
                                                                     const FeatureMseBlock<T, kVector>& block) {
  const int columns = p.grid_w << block.groups_log2, items = round_up(columns, kWarpSize);
  typename Accumulate<T>::type squares = 0;
  for (int item = thread_index(); item < items * block.segments; item += kFeatureMseThreads) {
    int segment = 0, i = item;
    for (; i >= items; i -= items) ++segment;
    const int c = (i & ((1 << block.groups_log2) - 1)) * kVector;
    if (i >= columns || c >= block.channels) continue;
    squares += walk_column<T, kVector, kResizesStudent, kResizesTeacher>(p, block, segment, i >> block.groups_log2, c);
  }
  return squares;
}

// For each pixel of a student that was resized, the sums of the grid columns it contributed to, gathered.
template <typename T, int kVector>
__device__ __forceinline__ void write_gradient(const FeatureMsePair& p, const FeatureMseBlock<T, kVector>& block) {
  using Acc = typename Accumulate<T>::type;
  const int64_t map_numel = static_cast<int64_t>(p.student_h) * p.student_w * p.channels;
  T* grad = static_cast<T*>(p.grad) + block.image * map_numel + block.first_channel;
  const Acc grad_scale = static_cast<Acc>(p.grad_scale);
  for (int row = warp_index(); row < p.student_h; row += num_warps()) {
    const TapRange slots = block.row_slots[row];
    for (int i = lane_index(); i < p.student_w << block.groups_log2; i += kWarpSize) {
      const int column = i >> block.groups_log2, group = i & ((1 << block.groups_log2) - 1);
      if (group * kVector >= block.channels) continue;
      const TapRange xs = block.column_ranges[column];
      Acc total[kVector] = {};
      for (int slot = slots.begin; slot < slots.end; slot += 2) {
        const Acc* sums = block.sums.at(((slot * p.grid_w + xs.begin) << block.groups_log2) + group);
        const Acc* weight = block.column_weights + column * block.column_taps;
#pragma unroll 2
        for (int x = xs.begin; x < xs.end; ++x, ++weight, sums += block.sums.kValues << block.groups_log2) {
          block.sums.add_to(total, sums, *weight);
        }
      }
      store_scaled<T>(grad + static_cast<int64_t>(row * p.student_w + column) * p.channels + group * kVector, total,
                      grad_scale);
    }
  }
}

// kResizesBoth: whether a pair may have a student and a teacher that are both resized, which takes registers that leave
// room for one block less.
template <typename T, int kVector, bool kResizesBoth>
__global__ void __launch_bounds__(kFeatureMseThreads, kResizesBoth ? 2 : 3)
    feature_mse_kernel(const __grid_constant__ FeatureMseParams params) {
  using Acc = typename Accumulate<T>::type;
  int k = 0;
  while (block_index() >= params.first_block[k + 1]) ++k;
  const FeatureMsePair& p = params.pairs[k];
  const FeatureMseBlock<T, kVector> block = feature_mse_block<T, kVector>(params, k);
  const bool student_changes = resizes_student(p), teacher_changes = resizes_teacher(p);
  if (student_changes) copy_map(block, student_map(p, block), p.student_h, p.student_w, block.student);
  if (teacher_changes) copy_map(block, teacher_map(p, block), p.teacher_h, p.teacher_w, block.teacher);
  fill_tables(p, block);
  sync_threads();
  find_slots(p, block);
  Acc squares = 0;
  if (student_changes && teacher_changes) {
    if constexpr (kResizesBoth) squares = walk_columns<T, kVector, true, true>(p, block);
  } else if (student_changes) {
    squares = walk_columns<T, kVector, true, false>(p, block);
  } else {
    squares = teacher_changes ? walk_columns<T, kVector, false, true>(p, block)
                              : walk_columns<T, kVector, false, false>(p, block);
  }
  const Acc sum = block_sum(squares, block.warp_sums);  // also orders the sums of columns before they are gathered
  if (thread_index() == 0) params.partials[block_index()] = static_cast<double>(sum) * p.loss_scale;
  if (p.grad != nullptr && student_changes) write_gradient<T, kVector>(p, block);
}

// Adds the partial losses in a fixed order.
template <typename Loss>
__global__ void __launch_bounds__(kFeatureMseThreads)
    feature_mse_sum_kernel(const double* __restrict__ partials,  // [n]
                           int n, Loss* __restrict__ loss) {
  double sum = 0;
#pragma unroll 4
  for (int i = thread_index(); i < n; i += kFeatureMseThreads) sum += partials[i];
  sum = block_sum(sum, reinterpret_cast<double*>(dynamic_smem()));
  if (thread_index() == 0) *loss = static_cast<Loss>(sum);
}

// out = grad * dloss * scale; both on 16-byte boundaries.
template <typename T>
__global__ void __launch_bounds__(kFeatureMseThreads)
    feature_mse_bwd_kernel(const T* __restrict__ grad,  // [n]
                           const typename Accumulate<T>::type* __restrict__ dloss, T* __restrict__ out, int64_t n,
                           double scale) {
  using Acc = typename Accumulate<T>::type;
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const Acc factor = static_cast<Acc>(*dloss * scale);
  const int64_t step = static_cast<int64_t>(grid_size()) * kFeatureMseThreads * kVector;
  int64_t i = (static_cast<int64_t>(block_index()) * kFeatureMseThreads + thread_index()) * kVector;
  for (; i + kVector <= n; i += step) {
    Acc values[kVector];
    load_channels(grad + i, values);
    store_scaled(out + i, values, factor);
  }
  for (; i < n; ++i) out[i] = Accumulate<T>::store(Accumulate<T>::load(grad[i]) * factor);
}

template <typename T>
const char* launch_feature_mse_fwd(const FeatureMseParams& params, void* loss, void* stream) {
  using Acc = typename Accumulate<T>::type;
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const int blocks = params.first_block[params.num_pairs];
  bool resizes_both = false;
  for (int k = 0; k < params.num_pairs; ++k) {
    resizes_both |= resizes_student(params.pairs[k]) && resizes_teacher(params.pairs[k]);
  }
  const auto vector_kernel =
      resizes_both ? feature_mse_kernel<T, kVector, true> : feature_mse_kernel<T, kVector, false>;
  const auto kernel = takes_vectors(params, kVector, sizeof(T)) ? vector_kernel : feature_mse_kernel<T, 1, true>;
  const char* error = nullptr;
  if (blocks > 0) error = launch(kernel, Grid{blocks}, kFeatureMseThreads, params.smem_bytes, stream, params);
  if (error) return error;
  const int smem_bytes = kFeatureMseThreads / kWarpSize * static_cast<int>(sizeof(double));
  return launch(feature_mse_sum_kernel<Acc>, Grid{}, kFeatureMseThreads, smem_bytes, stream,
                static_cast<const double*>(params.partials), blocks, static_cast<Acc*>(loss));
}

template <typename T>
const char* launch_feature_mse_bwd(const void* grad, const void* dloss, void* out, int64_t n, double scale,
                                   void* stream) {
  using Acc = typename Accumulate<T>::type;
  if (n == 0) return nullptr;
  const int64_t per_block = kFeatureMseThreads * (16 / static_cast<int>(sizeof(T)));
  const int64_t blocks = ceil_div(n, per_block);
  return launch(feature_mse_bwd_kernel<T>, Grid{static_cast<int>(blocks < 4096 ? blocks : 4096)}, kFeatureMseThreads, 0,
                stream, static_cast<const T*>(grad), static_cast<const Acc*>(dloss), static_cast<T*>(out), n, scale);
}

}  // namespace lgfast
