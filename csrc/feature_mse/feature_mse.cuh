// feature_mse: sum over pairs of mean((resize(student) - resize(teacher))^2), and its gradient, in one launch.
//
// Block: some rows and channels of one image of one pair. The maps that are resized are copied to shared memory. A
// thread owns a column of the common grid and kVector neighbouring channels, 16 bytes where the maps allow it, and
// walks down its rows: it keeps the two rows it blends, already blended across, and adds up what the differences give
// to the student's rows. So resizing costs an instruction a value, forward and back. When a student row has all its
// sums they meet in shared memory, where the columns that a pixel contributed to are gathered. A student that is the
// grid gets its gradient at once.
//
// Numerics: float (double for double maps), rounded once. Each block writes its part of the loss to a place of its own;
// the last block to end adds the parts in the order of their places, so two runs agree bit for bit.
#pragma once

#include "common/last_block.cuh"
#include "common/reduce.cuh"
#include "feature_mse/column_walk.cuh"

namespace lgfast {

struct alignas(16) Partials {
  double first, second;
};

// Adds the parts of the loss in a fixed order, and writes the results. The threads of a block call it together.
template <typename Loss>
__device__ __forceinline__ void add_partials(const double* partials,  // [n, rounded up to a multiple of 2]
                                             int n, const FeatureMseScalars& scalars, double* scratch) {
  constexpr int kAtOnce = 12, kSums = 4;  // loads on their way; additions that do not wait for one another
  const Loss weight = scalars.weight != nullptr ? *static_cast<const Loss*>(scalars.weight) : Loss(1);
  double sums[kSums] = {};
  for (int first = 2 * thread_index(); first < n; first += 2 * kAtOnce * block_size()) {
    Partials parts[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + 2 * k * block_size();
      parts[k] = i < n ? *reinterpret_cast<const Partials*>(partials + i) : Partials{};
      if (i + 1 >= n) parts[k].second = 0.0;
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) sums[k % kSums] += parts[k].first + parts[k].second;
  }
  const double sum = block_sum((sums[0] + sums[1]) + (sums[2] + sums[3]), scratch);
  if (thread_index() != 0) return;
  *static_cast<Loss*>(scalars.loss) = static_cast<Loss>(sum);
  if (scalars.weighted != nullptr) *static_cast<Loss*>(scalars.weighted) = weight * static_cast<Loss>(sum);
}

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
  const Acc sum = block_sum(squares, reinterpret_cast<Acc*>(block.warp_sums));
  if (thread_index() == 0)
    params.partials[block_index_y() * params.batch + block_index()] = static_cast<double>(sum) * p.loss_scale;
  if (params.counter == nullptr) return;
  const int blocks = params.first_unit[params.num_pairs] * params.batch;
  if (is_last_block(params.counter, blocks, block.is_last))
    add_partials<Acc>(params.partials, blocks, params.scalars, reinterpret_cast<double*>(block.warp_sums));
}

// The same by a kernel of its own: where no block ran, or the launch has no counter.
template <typename Loss>
__global__ void __launch_bounds__(kFeatureMseSumThreads)
    feature_mse_sum_kernel(const double* __restrict__ partials,  // [n]
                           int n, const __grid_constant__ FeatureMseScalars scalars) {
  add_partials<Loss>(partials, n, scalars, reinterpret_cast<double*>(dynamic_smem()));
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
const char* launch_feature_mse_fwd(const FeatureMseParams& params, void* stream) {
  using Acc = typename Accumulate<T>::type;
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const int blocks = static_cast<int>(feature_mse_blocks(params));
  const auto kernel = params.vector_log2 > 0 ? feature_mse_kernel<T, kVector> : feature_mse_kernel<T, 1>;
  const char* error = nullptr;
  if (blocks > 0)
    error = launch(kernel, Grid{params.batch, params.first_unit[params.num_pairs]}, params.threads, params.smem_bytes,
                   stream, params);
  if (error || (blocks > 0 && params.counter != nullptr)) return error;
  const int smem_bytes = kFeatureMseSumThreads / kWarpSize * static_cast<int>(sizeof(double));
  return launch(feature_mse_sum_kernel<Acc>, Grid{}, kFeatureMseSumThreads, smem_bytes, stream,
                static_cast<const double*>(params.partials), blocks, params.scalars);
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
