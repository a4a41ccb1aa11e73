// feature_mse: sum over pairs of mean((resize(student) - resize(teacher))^2), and its gradient, in one launch.
//
// Block: some rows and channels of one image of one pair. The maps that are resized are copied to shared memory. A
// thread owns a column of the common grid and kVector neighbouring channels, 16 bytes where the maps allow it, and
// walks down its rows: it keeps the two rows it blends, already blended across, and adds up what the differences give
// to the student's rows. So resizing costs an instruction a value, forward and back. When a student row has all its
// sums they meet in shared memory, where the columns that a pixel contributed to are gathered. A student that is the
// grid gets its gradient at once.
//
// Numerics: float (double for double maps), rounded once. No atomics: partial sums have a place per block and are
// added in order by a second kernel, so two runs agree bit for bit.
#pragma once

#include "common/reduce.cuh"
#include "feature_mse/column_walk.cuh"

namespace lgfast {

template <typename T, int kVector>
__global__ void __launch_bounds__(kFeatureMseMostThreads,
                                  sizeof(T) == 8 ? 1 : kFeatureMseThreadsAtOnce / kFeatureMseMostThreads)
    feature_mse_kernel(const __grid_constant__ FeatureMseParams params) {
  using Acc = typename Accumulate<T>::type;
  int k = 0;
  while (block_index_y() >= params.first_unit[k + 1]) ++k;
  const FeatureMsePair& p = params.pairs[k];
  const FeatureMseBlock<T, kVector> block = feature_mse_block<T, kVector>(params, k);
  const bool student_changes = resizes_student(p), teacher_changes = resizes_teacher(p);
  if (student_changes) {
    const int end = smaller(block.end_row + kFeatureMseHaloRows, p.student_h);
    start_copy(block, student_map(p, block), block.first_copied, end, p.student_w, block.student);
  }
  if (teacher_changes) start_copy(block, teacher_map(p, block), 0, p.teacher_h, p.teacher_w, block.teacher);
  cp_async_commit();
  fill_tables(p, block);
  Acc squares = 0;
  if (student_changes) {
    squares = teacher_changes ? walk_columns<T, kVector, true, true>(p, block)
                              : walk_columns<T, kVector, true, false>(p, block);
  } else {
    squares = teacher_changes ? walk_columns<T, kVector, false, true>(p, block)
                              : walk_columns<T, kVector, false, false>(p, block);
  }
  const Acc sum = block_sum(squares, block.warp_sums);
  if (thread_index() == 0)
    params.partials[block_index_y() * params.batch + block_index()] = static_cast<double>(sum) * p.loss_scale;
}

// Adds the partial losses in a fixed order.
template <typename Loss>
__global__ void __launch_bounds__(kFeatureMseSumThreads)
    feature_mse_sum_kernel(const double* __restrict__ partials,  // [n]
                           int n, Loss* __restrict__ loss) {
  double sum = 0;
  constexpr int kAtOnce = 8;  // loads on their way
  for (int first = thread_index(); first < n; first += kAtOnce * kFeatureMseSumThreads) {
    double values[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * kFeatureMseSumThreads;
      values[k] = i < n ? partials[i] : 0.0;
    }
#pragma unroll
    for (double value : values) sum += value;
  }
  sum = block_sum(sum, reinterpret_cast<double*>(dynamic_smem()));
  if (thread_index() == 0) *loss = static_cast<Loss>(sum);
}

// out = grad * dloss * scale; both on 16-byte boundaries.
template <typename T>
__global__ void __launch_bounds__(kFeatureMseSumThreads)
    feature_mse_bwd_kernel(const T* __restrict__ grad,  // [n]
                           const typename Accumulate<T>::type* __restrict__ dloss, T* __restrict__ out, int64_t n,
                           double scale) {
  using Acc = typename Accumulate<T>::type;
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const Acc factor = static_cast<Acc>(*dloss * scale);
  const int64_t step = static_cast<int64_t>(grid_size()) * kFeatureMseSumThreads * kVector;
  int64_t i = (static_cast<int64_t>(block_index()) * kFeatureMseSumThreads + thread_index()) * kVector;
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
  const int blocks = static_cast<int>(feature_mse_blocks(params));
  const auto kernel = params.vector_log2 > 0 ? feature_mse_kernel<T, kVector> : feature_mse_kernel<T, 1>;
  const char* error = nullptr;
  if (blocks > 0)
    error = launch(kernel, Grid{params.batch, params.first_unit[params.num_pairs]}, params.threads, params.smem_bytes,
                   stream, params);
  if (error) return error;
  const int smem_bytes = kFeatureMseSumThreads / kWarpSize * static_cast<int>(sizeof(double));
  return launch(feature_mse_sum_kernel<Acc>, Grid{}, kFeatureMseSumThreads, smem_bytes, stream,
                static_cast<const double*>(params.partials), blocks, static_cast<Acc*>(loss));
}

template <typename T>
const char* launch_feature_mse_bwd(const void* grad, const void* dloss, void* out, int64_t n, double scale,
                                   void* stream) {
  using Acc = typename Accumulate<T>::type;
  if (n == 0) return nullptr;
  const int64_t per_block = kFeatureMseSumThreads * (16 / static_cast<int>(sizeof(T)));
  const int64_t blocks = ceil_div(n, per_block);
  return launch(feature_mse_bwd_kernel<T>, Grid{static_cast<int>(blocks < 4096 ? blocks : 4096)}, kFeatureMseSumThreads,
                0, stream, static_cast<const T*>(grad), static_cast<const Acc*>(dloss), static_cast<T*>(out), n, scale);
}

}  // namespace lgfast
