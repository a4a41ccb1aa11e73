// A thread's walk down a grid column: resize, difference and gradient of its channels.
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

  // map: its row 0, there or not.
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
  // Goes on to the row after the last one.
  __device__ __forceinline__ void advance(int low) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) value[i] += step[i];
    take_next(low);
  }
};

// A thread's sums along its grid column, for the student rows `row` and row + 1.
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

// A thread's part of the gradient of each student row that was resized: the sums of the grid columns that read a pixel,
// gathered. It takes a piece of a pixel's channels, or two where the student has almost as many columns as the grid.
template <typename T, int kVector>
struct GatheredGradient {
  using Acc = typename Accumulate<T>::type;
  using Sums = Planes<kVector, Acc>;
  struct Piece {
    int columns = 0, place = 0, plane = 0;
    const Acc* weights = nullptr;
    T* grad = nullptr;
  };
  Piece pieces[Sums::kPieces];

  __device__ __forceinline__ void start(const FeatureMsePair& p, const FeatureMseBlock<T, kVector>& block) {
    const int count = p.student_w << block.groups_log2;
#pragma unroll
    for (int n = 0; n < Sums::kPieces; ++n) {
      int vector = thread_index() + n * block_size();
      const int plane = vector < count ? 0 : 1;
      if (plane > 0) vector -= count;
      if (vector >= count || plane >= Sums::kPieces) continue;
      const int column = vector >> block.groups_log2, group = vector & ((1 << block.groups_log2) - 1);
      if (group * kVector >= block.channels) continue;
      const TapRange xs = block.column_ranges[column];
      pieces[n] = {
          xs.end - xs.begin, (xs.begin << block.groups_log2) + group, plane,
          block.column_weights + column * block.column_taps,
          static_cast<T*>(p.grad) +
              (block.image * p.student_h + block.first_row) * (static_cast<int64_t>(p.student_w) * p.channels) +
              column * p.channels + block.first_channel + group * kVector + plane * Sums::kValues};
    }
  }

  // Adds the next row, whose sums are given.
  __device__ __forceinline__ void write_row(const Sums& sums, int groups_log2, int row_stride, Acc scale) {
#pragma unroll
    for (Piece& piece : pieces) {
      if (piece.columns == 0) continue;
      const Acc* at = sums.at(piece.plane, piece.place);
      Acc total[Sums::kValues] = {};
#pragma unroll 2
      for (int x = 0; x < piece.columns; ++x, at += Sums::kValues << groups_log2) {
        const auto values = *reinterpret_cast<const Channels<Acc, Sums::kValues>*>(at);
#pragma unroll
        for (int j = 0; j < Sums::kValues; ++j) total[j] += piece.weights[x] * values.values[j];
      }
      store_scaled<T>(piece.grad, total, scale);
      piece.grad += row_stride;
    }
  }
};

// A column of a map that is not resized. Its rows arrive some ahead, each in a slot of shared memory that is the
// thread's own, so no barrier orders them; single channels, which are too small for such copies, are read at once.
template <typename T, int kVector>
struct PlainColumn {
  using Offset = MapOffset<kVector>;
  const T* from;
  Offset stride;
  uint32_t slots;  // of this thread
  const unsigned char* memory;

  __device__ __forceinline__ PlainColumn(const GlobalMap<T, Offset>& map, unsigned char* ring, int y, int x, int c)
      : from(map.data + (y * map.row_stride + x * map.column_stride + c)),
        stride(map.row_stride),
        slots(smem_address(ring + 16 * thread_index())),
        memory(ring + 16 * thread_index()) {}

  // Starts copying the row that lies `ahead` rows below the walk's, into the slot of that row's number.
  __device__ __forceinline__ void start_row(int ahead, bool exists) {
    if constexpr (kVector > 1)
      cp_async_16(slots + ahead % kFeatureMseSlots * 16 * block_size(), from + ahead * stride, exists);
  }
  __device__ __forceinline__ Raw<T, kVector> take_row(int ahead) const {
    if constexpr (kVector > 1)
      return load_raw<T, kVector>(reinterpret_cast<const T*>(memory + ahead * 16 * block_size()));
    return load_raw<T, kVector>(from + ahead * stride);
  }
  __device__ __forceinline__ void move_down() { from += kFeatureMseSlots * stride; }
};

// A thread on its way down a grid column: differences, the sum of their squares, and the gradient. Where the student is
// resized all threads of the block walk together, since its rows are gathered from all columns. A thread without a
// column walks along another thread's and stores nothing.
template <typename T, int kVector, bool kResizesStudent, bool kResizesTeacher>
struct ColumnWalk {
  static constexpr int kSlots = kFeatureMseSlots;
  using Acc = typename Accumulate<T>::type;
  const FeatureMsePair& p;
  const FeatureMseBlock<T, kVector>& block;
  const int place;  // of this column's sums in a row
  const bool is_own;
  const int c, x;
  int y, end;  // rows of the grid: those that read the block's student rows
  PlainColumn<T, kVector> own, other;
  T* grad;
  Acc squares = 0;

  __device__ __forceinline__ ColumnWalk(const FeatureMsePair& p, const FeatureMseBlock<T, kVector>& block, int item)
      : p(p),
        block(block),
        place(item),
        is_own(item < p.grid_w << block.groups_log2 &&
               (item & ((1 << block.groups_log2) - 1)) * kVector < block.channels),
        c(is_own ? (item & ((1 << block.groups_log2) - 1)) * kVector : 0),
        x(is_own ? item >> block.groups_log2 : 0),
        y(kResizesStudent ? tap_range(block.first_row, p.student_h, p.grid_h).begin : block.first_row),
        end(kResizesStudent ? tap_range(block.end_row - 1, p.student_h, p.grid_h).end : block.end_row),
        own(student_map(p, block), block.student_slots, y, x, c),
        other(teacher_map(p, block), block.teacher_slots, y, x, c),
        grad(static_cast<T*>(p.grad)) {
    if (!kResizesStudent && grad != nullptr) {
      grad += block.image * p.student_h * p.student_w * p.channels +
              static_cast<int64_t>(y * p.student_w + x) * p.channels + block.first_channel + c;
    }
#pragma unroll
    for (int ahead = 0; ahead < kSlots - 1; ++ahead) start_row(ahead);
  }

  __device__ __forceinline__ void start_row(int ahead) {
    if constexpr (!kResizesStudent) own.start_row(ahead, y + ahead < end);
    if constexpr (!kResizesTeacher) other.start_row(ahead, y + ahead < end);
    cp_async_commit();
  }

  __device__ __forceinline__ Acc run() {
    ResizedColumn<T, kVector> student(block.student - block.first_copied * p.student_w * block.slab, p.student_h,
                                      p.student_w, p.student_scale_w, block.slab, x, c);
    ResizedColumn<T, kVector> teacher(block.teacher, p.teacher_h, p.teacher_w, p.teacher_scale_w, block.slab, x, c);
    GatheredGradient<T, kVector> gathered;
    if constexpr (kResizesStudent) gathered.start(p, block);
    ColumnSums<kVector, Acc> sums;
    int student_row = kResizesStudent ? block.student_rows[y].low : 0;
    int teacher_row = kResizesTeacher ? block.teacher_rows[y].low : 0;
    if constexpr (kResizesStudent) student.start(student_row);
    if constexpr (kResizesTeacher) teacher.start(teacher_row);
    const auto is_own_row = [&] { return student_row >= block.first_row && student_row < block.end_row; };
    // Stores the sums of a student row and gathers its gradient. The row before was gathered before the barrier.
    const auto finish_row = [&] {
      if (grad == nullptr || !is_own_row()) return;
      const auto to = block.sums_of(student_row, p.grid_w);
      if (is_own) to.store(place, sums.low);
      sync_threads();
      gathered.write_row(to, block.groups_log2, p.student_w * p.channels, block.grad_scale);
    };
#pragma unroll 1
    for (; y < end; y += kSlots) {
#pragma unroll
      for (int k = 0; k < kSlots; ++k) {
        if (y + k >= end) continue;
        cp_async_wait<kSlots - 2>();
        Acc difference[kVector], theirs[kVector], weight = 0;
        if constexpr (kResizesStudent) {
          const Position<Acc> at = block.student_rows[y + k];
          weight = at.weight;
          if (at.low != student_row) {
            finish_row();
            sums.move_down();
            student.advance(at.low);
            student_row = at.low;
          }
#pragma unroll
          for (int i = 0; i < kVector; ++i) difference[i] = student.value[i] + weight * student.step[i];
        } else {
          unpack<T>(own.take_row(k), difference);
        }
        if constexpr (kResizesTeacher) {
          const Position<Acc> at = block.teacher_rows[y + k];
          if (at.low != teacher_row) {
            teacher.advance(at.low);
            teacher_row = at.low;
          }
#pragma unroll
          for (int i = 0; i < kVector; ++i) theirs[i] = teacher.value[i] + at.weight * teacher.step[i];
        } else {
          unpack<T>(other.take_row(k), theirs);
        }
        start_row(k + kSlots - 1);
#pragma unroll
        for (int i = 0; i < kVector; ++i) difference[i] -= theirs[i];
        if (!kResizesStudent || is_own_row()) {  // else another block's
#pragma unroll
          for (int i = 0; i < kVector; ++i) squares += difference[i] * difference[i];
        }
        if constexpr (kResizesStudent) {
          sums.add(difference, weight);
        } else if (grad != nullptr) {
          if (is_own) store_scaled<T>(grad + k * p.student_w * p.channels, difference, block.grad_scale);
        }
      }
      own.move_down();
      other.move_down();
      if (!kResizesStudent && grad != nullptr) grad += kSlots * p.student_w * p.channels;
    }
    if constexpr (kResizesStudent) finish_row();
    cp_async_wait<0>();
    return is_own ? squares : Acc(0);
  }
};

// Walks the columns of a block, as many at a time as it has threads. Returns the thread's sum of squares.
template <typename T, int kVector, bool kResizesStudent, bool kResizesTeacher>
__device__ __forceinline__ typename Accumulate<T>::type walk_columns(const FeatureMsePair& p,
                                                                     const FeatureMseBlock<T, kVector>& block) {
  typename Accumulate<T>::type squares = 0;
  for (int first = 0; first < p.grid_w << block.groups_log2; first += block_size()) {
    ColumnWalk<T, kVector, kResizesStudent, kResizesTeacher> walk(p, block, first + thread_index());
    if (first == 0) {  // the maps that are resized, and the tables
      cp_async_wait<kFeatureMseSlots - 1>();
      sync_threads();
    }
    squares += walk.run();
  }
  return squares;
}

}  // namespace lgfast
