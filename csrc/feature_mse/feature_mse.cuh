// feature_mse: sum over pairs of mean((resize(student) - resize(teacher))^2), and its gradient, in one launch.
//
// Block: one image and up to 16 channels of one pair. Phase 1 takes the differences on the common grid into shared
// memory, a warp per grid row, and sums their squares. Phase 2 gathers, for each student pixel, the differences it
// contributed to, with the transposed bilinear weights. A thread takes kVector neighbouring channels at once, 16 bytes
// where the maps allow it, so that positions and weights are found once for all of them.
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

template <typename T, int kVector, typename Acc>
__device__ __forceinline__ void load_channels(const T* __restrict__ from, Acc (&to)[kVector]) {
  const auto in = *reinterpret_cast<const Channels<T, kVector>*>(from);
#pragma unroll
  for (int i = 0; i < kVector; ++i) to[i] = Accumulate<T>::load(in.values[i]);
}

// To shared memory, 16 bytes at a time where there are so many; the compiler would write value by value.
template <int kVector, typename Acc>
__device__ __forceinline__ void store_differences(Acc* to, const Acc (&from)[kVector]) {
  if constexpr (sizeof(from) % sizeof(Vector16) == 0) {
#pragma unroll
    for (size_t i = 0; i < sizeof(from) / sizeof(Vector16); ++i) {
      Vector16 words;
      memcpy(&words, from + i * sizeof(Vector16) / sizeof(Acc), sizeof(words));
      store_smem_16(smem_address(to) + i * sizeof(words), words);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) to[i] = from[i];
  }
}

// a * (1 - weight) + b * weight; with weight 0 b plays no part, not even if it is not finite.
template <int kVector, typename Acc>
__device__ __forceinline__ void blend(Acc (&a)[kVector], const Acc (&b)[kVector], Acc weight) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) a[i] = weight == Acc(0) ? a[i] : a[i] * (Acc(1) - weight) + b[i] * weight;
}

// Values of a map at one grid position. The four loads are in flight together; a map of the grid's size needs one.
template <typename Offset, typename T, int kVector, typename Acc>
__device__ __forceinline__ void bilinear_read(const T* __restrict__ map,  // [h, w, C] of one image, at the channel
                                              Offset row_stride, Offset column_stride, const Tap<Acc>& ty,
                                              const Tap<Acc>& tx, bool is_grid, Acc (&value)[kVector]) {
  const Offset row = ty.low * row_stride, column = tx.low * column_stride;
  load_channels(map + (row + column), value);
  if (is_grid) return;
  const Offset next_row = ty.high * row_stride, next_column = tx.high * column_stride;
  Acc right[kVector], below[kVector], below_right[kVector];
  load_channels(map + (row + next_column), right);
  load_channels(map + (next_row + column), below);
  load_channels(map + (next_row + next_column), below_right);
  blend(value, right, tx.weight);
  blend(below, below_right, tx.weight);
  blend(value, below, ty.weight);
}

template <typename Acc>
__device__ void fill_taps(Tap<Acc>* taps, int in, int out) {
  for (int x = thread_index(); x < out; x += kFeatureMseThreads) taps[x] = bilinear_tap<Acc>(x, in, out);
}

// What a block works on: an image and some channels of a pair, and its shared memory.
template <typename Acc>
struct FeatureMseBlock {
  int64_t image;
  int first_channel, channels;  // channels: fewer than the slab in the last block of an image
  int slab, slab_log2;
  Acc* difference;  // [grid_h, grid_w, slab]
  Tap<Acc>*student_rows, *student_columns, *teacher_rows, *teacher_columns;
  Acc* sums;  // one per warp
};

template <typename Acc>
__device__ __forceinline__ FeatureMseBlock<Acc> feature_mse_block(const FeatureMseParams& params, int k) {
  const FeatureMsePair& p = params.pairs[k];
  FeatureMseBlock<Acc> block;
  block.slab_log2 = params.slab_log2[k];
  block.slab = 1 << block.slab_log2;
  const int slabs = (p.channels + block.slab - 1) >> block.slab_log2;
  const int local = block_index() - params.first_block[k];
  block.image = local / slabs;
  block.first_channel = (local % slabs) << block.slab_log2;
  block.channels = p.channels - block.first_channel < block.slab ? p.channels - block.first_channel : block.slab;
  block.difference = reinterpret_cast<Acc*>(dynamic_smem());
  block.student_rows = reinterpret_cast<Tap<Acc>*>(block.difference + p.grid_h * p.grid_w * block.slab);
  block.student_columns = block.student_rows + p.grid_h;
  block.teacher_rows = block.student_columns + p.grid_w;
  block.teacher_columns = block.teacher_rows + p.grid_h;
  block.sums = reinterpret_cast<Acc*>(block.teacher_columns + p.grid_w);
  return block;
}

// Phase 1: the differences into shared memory; returns this thread's sum of their squares.
template <typename T, int kVector, typename Acc>
__device__ __forceinline__ Acc take_differences(const FeatureMsePair& p, const FeatureMseBlock<Acc>& block) {
  const T* student = static_cast<const T*>(p.student) + block.image * p.student_image_stride + block.first_channel;
  const T* teacher = static_cast<const T*>(p.teacher) + block.image * p.teacher_image_stride + block.first_channel;
  const bool student_is_grid = p.student_h == p.grid_h && p.student_w == p.grid_w;
  const bool teacher_is_grid = p.teacher_h == p.grid_h && p.teacher_w == p.grid_w;
  using Offset = std::conditional_t<kVector == 1, int64_t, int>;  // within an image; takes_vectors sees to it
  const Offset student_column_stride = static_cast<Offset>(p.student_token_stride);
  const Offset student_row_stride = static_cast<Offset>(p.student_w * p.student_token_stride);
  const Offset teacher_column_stride = static_cast<Offset>(p.teacher_column_stride);
  const Offset teacher_row_stride = static_cast<Offset>(p.teacher_row_stride);
  Acc squares = 0;
  for (int y = warp_index(); y < p.grid_h; y += num_warps()) {
    for (int i = lane_index() * kVector; i < p.grid_w * block.slab; i += kWarpSize * kVector) {
      const int x = i >> block.slab_log2, c = i & (block.slab - 1);
      if (c >= block.channels) continue;
      Acc s[kVector], t[kVector];
      bilinear_read<Offset>(student + c, student_row_stride, student_column_stride, block.student_rows[y],
                            block.student_columns[x], student_is_grid, s);
      bilinear_read<Offset>(teacher + c, teacher_row_stride, teacher_column_stride, block.teacher_rows[y],
                            block.teacher_columns[x], teacher_is_grid, t);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        s[j] -= t[j];
        squares += s[j] * s[j];
      }
      store_differences(block.difference + y * p.grid_w * block.slab + i, s);
    }
  }
  return squares;
}

// Phase 2: for each student pixel the differences it contributed to, gathered.
template <typename T, int kVector, typename Acc>
__device__ __forceinline__ void write_gradient(const FeatureMsePair& p, const FeatureMseBlock<Acc>& block) {
  const int64_t map_numel = static_cast<int64_t>(p.student_h) * p.student_w * p.channels;
  T* grad = static_cast<T*>(p.grad) + block.image * map_numel + block.first_channel;
  const Acc grad_scale = static_cast<Acc>(p.grad_scale);
  for (int row = warp_index(); row < p.student_h; row += num_warps()) {
    const TapRange ys = tap_range(row, p.student_h, p.grid_h);
    for (int i = lane_index() * kVector; i < p.student_w * block.slab; i += kWarpSize * kVector) {
      const int column = i >> block.slab_log2, c = i & (block.slab - 1);
      if (c >= block.channels) continue;
      const TapRange xs = tap_range(column, p.student_w, p.grid_w);
      Acc total[kVector] = {};
      for (int y = ys.begin; y < ys.end; ++y) {
        Acc along_x[kVector] = {};
        for (int x = xs.begin; x < xs.end; ++x) {
          const Acc weight = tap_weight(block.student_columns[x], column);
          const Acc* at = block.difference + ((y * p.grid_w + x) << block.slab_log2) + c;
          const auto d = *reinterpret_cast<const Channels<Acc, kVector>*>(at);
#pragma unroll
          for (int j = 0; j < kVector; ++j) along_x[j] += weight * d.values[j];
        }
        const Acc weight = tap_weight(block.student_rows[y], row);
#pragma unroll
        for (int j = 0; j < kVector; ++j) total[j] += weight * along_x[j];
      }
      Channels<T, kVector> out;
#pragma unroll
      for (int j = 0; j < kVector; ++j) out.values[j] = Accumulate<T>::store(total[j] * grad_scale);
      T* to = grad + static_cast<int64_t>(row * p.student_w + column) * p.channels + c;
      *reinterpret_cast<Channels<T, kVector>*>(to) = out;
    }
  }
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kFeatureMseThreads, 2) feature_mse_kernel(const FeatureMseParams params) {
  using Acc = typename Accumulate<T>::type;
  int k = 0;
  while (block_index() >= params.first_block[k + 1]) ++k;
  const FeatureMsePair& p = params.pairs[k];
  const FeatureMseBlock<Acc> block = feature_mse_block<Acc>(params, k);
  fill_taps(block.student_rows, p.student_h, p.grid_h);
  fill_taps(block.student_columns, p.student_w, p.grid_w);
  fill_taps(block.teacher_rows, p.teacher_h, p.grid_h);
  fill_taps(block.teacher_columns, p.teacher_w, p.grid_w);
  sync_threads();
  const Acc squares = take_differences<T, kVector>(p, block);
  const Acc sum = block_sum(squares, block.sums);  // also orders the differences before phase 2
  if (thread_index() == 0) params.partials[block_index()] = static_cast<double>(sum) * p.loss_scale;
  if (p.grad) write_gradient<T, kVector>(p, block);
}

// Adds the partial losses in a fixed order.
template <typename Loss>
__global__ void __launch_bounds__(kFeatureMseThreads)
    feature_mse_sum_kernel(const double* __restrict__ partials,  // [n]
                           int n, Loss* __restrict__ loss) {
  double sum = 0;
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
    Channels<T, kVector> scaled;
#pragma unroll
    for (int j = 0; j < kVector; ++j) scaled.values[j] = Accumulate<T>::store(values[j] * factor);
    *reinterpret_cast<Channels<T, kVector>*>(out + i) = scaled;
  }
  for (; i < n; ++i) out[i] = Accumulate<T>::store(Accumulate<T>::load(grad[i]) * factor);
}

template <typename T>
const char* launch_feature_mse_fwd(const FeatureMseParams& params, void* loss, void* stream) {
  using Acc = typename Accumulate<T>::type;
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const int blocks = params.first_block[params.num_pairs];
  const auto kernel =
      takes_vectors(params, kVector, sizeof(T)) ? feature_mse_kernel<T, kVector> : feature_mse_kernel<T, 1>;
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
