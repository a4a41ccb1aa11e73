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

#include "common/reduce.cuh"
#include "feature_mse/column_walk.cuh"

namespace lgfast {

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
