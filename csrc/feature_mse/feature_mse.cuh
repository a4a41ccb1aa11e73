// feature_mse: sum over pairs of mean((resize(student) - resize(teacher))^2), and its gradient, in one launch.
//
// Block: one image and up to 16 channels of one pair. Phase 1 takes the differences on the common grid into shared
// memory, a warp per grid row, and sums their squares. Phase 2 gathers, for each student pixel, the differences it
// contributed to, with the transposed bilinear weights. Channels are the fastest lane index, so a pixel is one sector.
// Numerics: float (double for double maps), rounded once. No atomics: partial sums have a place per block and are
// added in order by a second kernel, so two runs agree bit for bit.
#pragma once

#include "common/accumulate.h"
#include "common/reduce.cuh"
#include "feature_mse/bilinear.h"
#include "feature_mse/feature_mse.h"

namespace lgfast {

// Value of a map at one grid position and channel; taps with weight 0 read one pixel only.
template <typename T, typename Acc>
__device__ Acc bilinear_read(const T* __restrict__ map,  // [h, w, C] of one image, at the channel
                             int64_t row_stride, int64_t column_stride, const Tap<Acc>& ty, const Tap<Acc>& tx) {
  const T* low = map + ty.low * row_stride;
  const T* high = map + ty.high * row_stride;
  const auto blend_x = [&](const T* row) {
    const Acc a = Accumulate<T>::load(row[tx.low * column_stride]);
    if (tx.weight == Acc(0)) return a;
    return a * (Acc(1) - tx.weight) + Accumulate<T>::load(row[tx.high * column_stride]) * tx.weight;
  };
  const Acc a = blend_x(low);
  if (ty.weight == Acc(0)) return a;
  return a * (Acc(1) - ty.weight) + blend_x(high) * ty.weight;
}

template <typename Acc>
__device__ void fill_taps(Tap<Acc>* taps, int in, int out) {
  for (int x = thread_index(); x < out; x += kFeatureMseThreads) taps[x] = bilinear_tap<Acc>(x, in, out);
}

template <typename T>
__global__ void __launch_bounds__(kFeatureMseThreads) feature_mse_kernel(const FeatureMseParams params) {
  using Acc = typename Accumulate<T>::type;
  int k = 0;
  while (block_index() >= params.first_block[k + 1]) ++k;
  const FeatureMsePair& p = params.pairs[k];
  const int slab_log2 = params.slab_log2[k], slab = 1 << slab_log2, slabs = (p.channels + slab - 1) >> slab_log2;
  const int local = block_index() - params.first_block[k];
  const int64_t image = local / slabs;
  const int first_channel = (local % slabs) << slab_log2;
  const int channels = p.channels - first_channel < slab ? p.channels - first_channel : slab;

  Acc* difference = reinterpret_cast<Acc*>(dynamic_smem());  // [grid_h, grid_w, slab]
  Tap<Acc>* student_rows = reinterpret_cast<Tap<Acc>*>(difference + p.grid_h * p.grid_w * slab);
  Tap<Acc>* student_columns = student_rows + p.grid_h;
  Tap<Acc>* teacher_rows = student_columns + p.grid_w;
  Tap<Acc>* teacher_columns = teacher_rows + p.grid_h;
  Acc* sums = reinterpret_cast<Acc*>(teacher_columns + p.grid_w);
  fill_taps(student_rows, p.student_h, p.grid_h);
  fill_taps(student_columns, p.student_w, p.grid_w);
  fill_taps(teacher_rows, p.teacher_h, p.grid_h);
  fill_taps(teacher_columns, p.teacher_w, p.grid_w);
  sync_threads();

  const T* student = static_cast<const T*>(p.student) + image * p.student_image_stride + first_channel;
  const T* teacher = static_cast<const T*>(p.teacher) + image * p.teacher_image_stride + first_channel;
  Acc squares = 0;
  for (int y = warp_index(); y < p.grid_h; y += num_warps()) {
    for (int i = lane_index(); i < p.grid_w * slab; i += kWarpSize) {
      const int x = i >> slab_log2, c = i & (slab - 1);
      if (c >= channels) continue;
      const Acc s = bilinear_read(student + c, p.student_w * p.student_token_stride, p.student_token_stride,
                                  student_rows[y], student_columns[x]);
      const Acc t = bilinear_read(teacher + c, p.teacher_row_stride, p.teacher_column_stride, teacher_rows[y],
                                  teacher_columns[x]);
      const Acc d = s - t;
      difference[y * p.grid_w * slab + i] = d;
      squares += d * d;
    }
  }
  const Acc sum = block_sum(squares, sums);  // also orders the differences before phase 2
  if (thread_index() == 0) params.partials[block_index()] = static_cast<double>(sum) * p.loss_scale;
  if (!p.grad) return;

  const int64_t map_numel = static_cast<int64_t>(p.student_h) * p.student_w * p.channels;
  T* grad = static_cast<T*>(p.grad) + image * map_numel + first_channel;
  const Acc grad_scale = static_cast<Acc>(p.grad_scale);
  for (int row = warp_index(); row < p.student_h; row += num_warps()) {
    const TapRange ys = tap_range(row, p.student_h, p.grid_h);
    for (int i = lane_index(); i < p.student_w * slab; i += kWarpSize) {
      const int column = i >> slab_log2, c = i & (slab - 1);
      if (c >= channels) continue;
      const TapRange xs = tap_range(column, p.student_w, p.grid_w);
      Acc total = 0;
      for (int y = ys.begin; y < ys.end; ++y) {
        Acc along_x = 0;
        for (int x = xs.begin; x < xs.end; ++x)
          along_x += tap_weight(student_columns[x], column) * difference[((y * p.grid_w + x) << slab_log2) + c];
        total += tap_weight(student_rows[y], row) * along_x;
      }
      grad[static_cast<int64_t>(row * p.student_w + column) * p.channels + c] =
          Accumulate<T>::store(total * grad_scale);
    }
  }
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

// out = grad * dloss * scale
template <typename T>
__global__ void __launch_bounds__(kFeatureMseThreads)
    feature_mse_bwd_kernel(const T* __restrict__ grad,  // [n]
                           const typename Accumulate<T>::type* __restrict__ dloss, T* __restrict__ out, int64_t n,
                           double scale) {
  using Acc = typename Accumulate<T>::type;
  const Acc factor = static_cast<Acc>(*dloss * scale);
  const int64_t step = static_cast<int64_t>(grid_size()) * kFeatureMseThreads;
  for (int64_t i = static_cast<int64_t>(block_index()) * kFeatureMseThreads + thread_index(); i < n; i += step)
    out[i] = Accumulate<T>::store(Accumulate<T>::load(grad[i]) * factor);
}

template <typename T>
const char* launch_feature_mse_fwd(const FeatureMseParams& params, void* loss, void* stream) {
  using Acc = typename Accumulate<T>::type;
  const int blocks = params.first_block[params.num_pairs];
  const char* error = nullptr;
  if (blocks > 0)
    error = launch(feature_mse_kernel<T>, Grid{blocks}, kFeatureMseThreads, params.smem_bytes, stream, params);
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
  const int64_t per_block = kFeatureMseThreads * 4, blocks = (n + per_block - 1) / per_block;
  return launch(feature_mse_bwd_kernel<T>, Grid{static_cast<int>(blocks < 4096 ? blocks : 4096)}, kFeatureMseThreads, 0,
                stream, static_cast<const T*>(grad), static_cast<const Acc*>(dloss), static_cast<T*>(out), n, scale);
}

}  // namespace lgfast
