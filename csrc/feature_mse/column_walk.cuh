// A thread's walk down a segment of a grid column: resize, difference and gradient of its channels.
#pragma once

#include "feature_mse/feature_mse_block.cuh"

namespace lgfast {

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

}  // namespace lgfast
