// The device layer on the GPU: one short function per instruction. See ../device.cuh for the contract.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>

namespace lgfast {

__device__ __forceinline__ int thread_index() { return threadIdx.x; }
__device__ __forceinline__ int block_size() { return blockDim.x; }
__device__ __forceinline__ int block_index() { return blockIdx.x; }
__device__ __forceinline__ int block_index_y() { return blockIdx.y; }
__device__ __forceinline__ int block_index_z() { return blockIdx.z; }
__device__ __forceinline__ int grid_size() { return gridDim.x; }
__device__ __forceinline__ int grid_size_z() { return gridDim.z; }

__device__ __forceinline__ unsigned char* dynamic_smem() {
  extern __shared__ __align__(1024) unsigned char lgfast_dynamic_smem[];
  return lgfast_dynamic_smem;
}

__device__ __forceinline__ void atomic_add(uint32_t* counter, uint32_t value) { atomicAdd(counter, value); }

// ptxas lets one thread of a warp add for all of them.
template <bool kIsShared>
__device__ __forceinline__ uint32_t take_slot(uint32_t* counter) {
  uint32_t before;
  if constexpr (kIsShared) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(counter));
    asm volatile("atom.shared.add.u32 %0, [%1], 1;" : "=r"(before) : "r"(address) : "memory");
  } else {
    asm volatile("atom.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(__cvta_generic_to_global(counter)) : "memory");
  }
  return before;
}

__device__ __forceinline__ uint32_t take_slots(uint32_t* counter, uint32_t count) { return atomicAdd(counter, count); }

__device__ __forceinline__ uint32_t take_turn(uint32_t* counter, uint32_t count) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(counter)), "r"(count - 1)
               : "memory");
  return before;
}

// The barrier of __syncthreads(), without its rule that all threads meet at one place of the code: the instruction
// counts warps, whichever place they come from.
__device__ __forceinline__ void sync_threads() { asm volatile("bar.sync 0;" ::: "memory"); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
__device__ __forceinline__ void barrier_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(barrier) : "memory");
}

constexpr unsigned kFullWarp = 0xffffffffu;

template <typename T>
__device__ __forceinline__ T shfl(T value, int lane) {
  return __shfl_sync(kFullWarp, value, lane);
}
template <typename T>
__device__ __forceinline__ T shfl_xor(T value, int mask) {
  return __shfl_xor_sync(kFullWarp, value, mask);
}
template <typename T>
__device__ __forceinline__ T shfl_down(T value, int delta) {
  return __shfl_down_sync(kFullWarp, value, delta);
}
__device__ __forceinline__ bool any_lane(bool predicate) { return __any_sync(kFullWarp, predicate); }

__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void store_smem_16(uint32_t smem, const Vector16& value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(smem), "r"(value.words[0]), "r"(value.words[1]),
               "r"(value.words[2]), "r"(value.words[3])
               : "memory");
}

__device__ __forceinline__ void store_smem_4(uint32_t smem, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(smem), "r"(value) : "memory");
}

__device__ __forceinline__ Vector16 load_smem_16(uint32_t smem) {
  Vector16 value;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.words[0]), "=r"(value.words[1]), "=r"(value.words[2]), "=r"(value.words[3])
               : "r"(smem)
               : "memory");
  return value;
}

__device__ __forceinline__ void store_global_16(void* global, const Vector16& value) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(value.words[0]), "r"(value.words[1]),
               "r"(value.words[2]), "r"(value.words[3])
               : "memory");
}

__device__ __forceinline__ void cp_async_16(uint32_t smem, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_m16n8k16<bf16>(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<fp16>(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t saturate_bytes(int v0, int v1, int v2, int v3) {
  uint32_t high, bytes;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(v3), "r"(v2));
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(v1), "r"(v0), "r"(high));
  return bytes;
}

__device__ __forceinline__ int select_byte(uint32_t word, int k) { return __byte_perm(word, 0, 0x4440 + k); }

__device__ __forceinline__ double add_down(double a, double b) { return __dadd_rd(a, b); }

__device__ __forceinline__ uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t word;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(word) : "r"(low), "r"(high), "r"(selector));
  return word;
}

__device__ __forceinline__ int dot_low_bytes(uint32_t bytes, uint32_t weights, int start) {
  uint32_t sum;
  asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(weights), "r"(bytes), "r"(start));
  return int(sum);
}
__device__ __forceinline__ int dot_high_bytes(uint32_t bytes, uint32_t weights, int start) {
  int sum;
  asm("dp2a.hi.s32.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(weights), "r"(bytes), "r"(start));
  return sum;
}

__device__ __forceinline__ uint32_t dot_bytes(uint32_t bytes, uint32_t weights, uint32_t start) {
  uint32_t sum;
  asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(weights), "r"(bytes), "r"(start));
  return sum;
}

__device__ __forceinline__ int num_bits(uint32_t word) { return __popc(word); }
__device__ __forceinline__ int highest_bit(uint32_t word) { return 31 - __clz(int(word)); }
__device__ __forceinline__ uint32_t shift_in(uint32_t bits, uint32_t word) { return __funnelshift_l(word, bits, 1); }

__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float fast_log2(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float fast_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

inline int device_attribute(cudaDeviceAttr attribute, int otherwise) {  // an error shows in the next launch
  int device = 0, value = otherwise;
  if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

inline int num_multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount, 1); }
inline int max_smem_bytes() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 48 * 1024); }

// Whether the GPU multiplies by warpgroups, and the library has code for it that does. CMake knows the latter.
inline bool has_wgmma() {
#if defined(LGFAST_COMPILED_FOR_SM90A)
  return device_attribute(cudaDevAttrComputeCapabilityMajor, 0) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor, 0) == 0;
#else
  return false;
#endif
}

// Returns the text of a launch error. Where the library has no code for the GPU, the text says how to get it.
inline const char* describe_launch_error(cudaError_t error) {
  cudaGetLastError();  // else the next launch would report it again
  const bool has_no_code = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
                           error == cudaErrorUnsupportedPtxVersion || error == cudaErrorJitCompilerNotFound;
  if (!has_no_code) return cudaGetErrorString(error);
  const int major = device_attribute(cudaDevAttrComputeCapabilityMajor, 0);
  const int minor = device_attribute(cudaDevAttrComputeCapabilityMinor, 0);
  static thread_local char text[256];
  std::snprintf(text, sizeof(text),
                "the CUDA kernels were not compiled for this GPU, of compute capability %d.%d (%s); build lgfast again "
                "with TORCH_CUDA_ARCH_LIST=%d.%d, or set LGFAST_NATIVE=off",
                major, minor, cudaGetErrorString(error), major, minor);
  return text;
}

// Launches a kernel. Returns nullptr, or the text of the launch error.
//
// CUDA must allow a kernel to use more than 48 KB of shared memory a block, and keeps the allowance by kernel and GPU.
// So every such launch sets it first; that is no stream operation, so a graph may be capturing. The launch sets the
// most that a block can have, not its own bytes: a smaller number would take away what another launch of the same
// kernel relies on, from another thread or captured in a graph.
template <typename... Params, typename... Args>
const char* launch(void (*kernel)(Params...), Grid grid, int block, int smem_bytes, void* stream, Args... args) {
  constexpr int kDefaultSmemBytes = 48 * 1024;
  cudaError_t error = cudaSuccess;
  if (smem_bytes > kDefaultSmemBytes) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, max_smem_bytes());
  }
  if (error == cudaSuccess) {
    kernel<<<dim3(grid.x, grid.y, grid.z), block, smem_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? nullptr : describe_launch_error(error);
}

}  // namespace lgfast

#include "warpgroup_ptx.cuh"
