// flat_adamw: AdamW on flat buffers, reading every gradient where autograd left it.
//
// Three kernels:
//   norm      sums the squared gradients, one partial sum per block. It runs only to clip or to skip.
//   control   is one block. It adds the partial sums in order and decides whether to step. Then one thread for each
//             parameter with a gradient counts the step and leaves that parameter's constants in device memory.
//   update    changes the moments, the parameter and its 16-bit copy in one pass over memory. It moves 28 to 30 bytes
//   an
//             element, so memory bounds it.
// A block of norm and update takes one chunk of one gradient. A thread takes four neighbours at a time, in 16-byte
// accesses to the flat buffers. Offsets are multiples of 8 elements, so these accesses are always aligned. Elements
// between two tensors are padding and stay 0.
// Numerics: float32; control adds the partial sums in double. No atomics, so two runs agree bit for bit.
#pragma once

#include "common/accumulate.h"
#include "common/reduce.cuh"
#include "flat_adamw/flat_adamw.h"

namespace lgfast {

// Four neighbours, moved as one access.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T values[4];
};

template <typename T>
__device__ Four<float> load_four(const T* from) {
  const Four<T> in = *reinterpret_cast<const Four<T>*>(from);
  Four<float> out;
  for (int j = 0; j < 4; ++j) out.values[j] = Accumulate<T>::load(in.values[j]);
  return out;
}

template <typename T>
__device__ void store_four(T* to, const Four<float>& in) {
  Four<T> out;
  for (int j = 0; j < 4; ++j) out.values[j] = Accumulate<T>::store(in.values[j]);
  *reinterpret_cast<Four<T>*>(to) = out;
}

// Four gradients from i on, 0 from `end` on. A gradient may begin anywhere (a slice of a larger buffer).
template <typename T>
__device__ Four<float> load_grads(const T* __restrict__ grad,  // [numel]
                                  int i, int end) {
  const bool is_aligned = reinterpret_cast<uintptr_t>(grad) % sizeof(Four<T>) == 0;
  if (is_aligned && i + 4 <= end) return load_four(grad + i);
  Four<float> out;
  for (int j = 0; j < 4; ++j) out.values[j] = i + j < end ? Accumulate<T>::load(grad[i + j]) : 0.0f;
  return out;
}

// The tensor that this block works on, and the elements [begin, end) of it that the block owns.
struct FlatAdamWBlock {
  int tensor, begin, end;
};
__device__ inline FlatAdamWBlock flat_adamw_block(const FlatAdamWParams& params) {
  int k = 0, last = params.num_tensors - 1;
  while (k < last) {  // the last tensor that begins at or before the block
    const int middle = (k + last + 1) / 2;
    if (block_index() >= params.first_block[middle]) {
      k = middle;
    } else {
      last = middle - 1;
    }
  }
  const int begin = (block_index() - params.first_block[k]) * kFlatAdamWChunk, numel = params.tensors[k].numel;
  return {k, begin, numel - begin < kFlatAdamWChunk ? numel : begin + kFlatAdamWChunk};
}

template <typename T>
__global__ void __launch_bounds__(kFlatAdamWThreads) flat_adamw_norm_kernel(const FlatAdamWParams params) {
  const FlatAdamWBlock block = flat_adamw_block(params);
  const T* grad = static_cast<const T*>(params.tensors[block.tensor].grad);
  float sum = 0;
  for (int i = block.begin + 4 * thread_index(); i < block.end; i += 4 * kFlatAdamWThreads) {
    for (float g : load_grads(grad, i, block.end).values) sum += g * g;
  }
  const double total = block_sum(static_cast<double>(sum), reinterpret_cast<double*>(dynamic_smem()));
  if (thread_index() == 0) params.partials[block_index()] = total;
}

__global__ void __launch_bounds__(kFlatAdamWThreads) flat_adamw_control_kernel(const FlatAdamWControlParams params) {
  FlatAdamWControl control;
  if (params.is_first) {
    double sum = 0;
    for (int i = thread_index(); i < params.num_partials; i += kFlatAdamWThreads) sum += params.partials[i];
    control = flat_adamw_control(block_sum(sum, reinterpret_cast<double*>(dynamic_smem())), params);
    if (thread_index() == 0) {
      *params.control = control;
      *params.num_skipped += control.skip;
    }
  } else {
    control = *params.control;
  }
  if (control.skip) return;
  for (int k = thread_index(); k < params.num_counted; k += kFlatAdamWThreads)
    params.factors[k] = count_adamw_step(control, params, params.counted[k]);
}

template <typename T>
__global__ void __launch_bounds__(kFlatAdamWThreads) flat_adamw_kernel(const FlatAdamWParams params) {
  if (params.control->skip) return;
  const FlatAdamWBlock block = flat_adamw_block(params);
  const FlatAdamWTensor& tensor = params.tensors[block.tensor];
  const AdamWFactors factors = params.factors[block.tensor];
  const T* grad = static_cast<const T*>(tensor.grad);
  for (int i = block.begin + 4 * thread_index(); i < block.end; i += 4 * kFlatAdamWThreads) {
    const int64_t flat = int64_t{kFlatAdamWAlign} * tensor.place + i;
    const Four<float> g = load_grads(grad, i, block.end);
    Four<float> param = load_four(params.params + flat);
    Four<float> exp_avg = load_four(params.exp_avg + flat);
    Four<float> exp_avg_sq = load_four(params.exp_avg_sq + flat);
    for (int j = 0; j < 4; ++j)
      adamw_update(param.values[j], exp_avg.values[j], exp_avg_sq.values[j], g.values[j], factors);
    store_four(params.params + flat, param);
    store_four(params.exp_avg + flat, exp_avg);
    store_four(params.exp_avg_sq + flat, exp_avg_sq);
    if (params.low_type == LowType::kBFloat16) store_four(static_cast<bf16*>(params.low) + flat, param);
    if (params.low_type == LowType::kFloat16) store_four(static_cast<fp16*>(params.low) + flat, param);
  }
}

constexpr int kFlatAdamWSmemBytes = kFlatAdamWThreads / kWarpSize * static_cast<int>(sizeof(double));

template <typename T>
const char* launch_flat_adamw_norm(const FlatAdamWParams& params, void* stream) {
  const int blocks = params.first_block[params.num_tensors];
  if (blocks == 0) return nullptr;
  return launch(flat_adamw_norm_kernel<T>, Grid{blocks}, kFlatAdamWThreads, kFlatAdamWSmemBytes, stream, params);
}

inline const char* launch_flat_adamw_control_kernel(const FlatAdamWControlParams& params, void* stream) {
  return launch(flat_adamw_control_kernel, Grid{}, kFlatAdamWThreads, kFlatAdamWSmemBytes, stream, params);
}

template <typename T>
const char* launch_flat_adamw(const FlatAdamWParams& params, void* stream) {
  const int blocks = params.first_block[params.num_tensors];
  if (blocks == 0) return nullptr;
  return launch(flat_adamw_kernel<T>, Grid{blocks}, kFlatAdamWThreads, 0, stream, params);
}

}  // namespace lgfast
