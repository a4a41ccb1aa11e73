// The thin device layer: every kernel of lgfast is written against these functions only.
//
// The list has two implementations: CUDA with PTX (csrc/common/ptx/), and a host emulation (tests/emulation/), which
// runs the same kernel sources, byte for byte, without a GPU. These rules keep a kernel runnable in both:
//   - a kernel takes shared memory from dynamic_smem(), whose size launch() sets; it has no __shared__ variables;
//   - thread and block indices come from thread_index(), block_index() and so on (no threadIdx);
//   - all 32 lanes of a warp call a warp-wide function, and all threads of a block call sync_threads(); the lanes of a
//     warp call it from one place of the code, but each warp may call it from a place of its own;
//   - no thread returns while a collective call of its warp or block is still to come.
//
// Indices       thread_index() block_size() lane_index() warp_index() num_warps() block_index() block_index_y()
//               block_index_z() grid_size() grid_size_z()
// Memory        dynamic_smem() -> unsigned char*, 1,024-byte aligned; smem_address(pointer into it) -> uint32_t, which
//               copies and ldmatrix take; store_smem_16(smem, words): 16 bytes as one access; store_smem_4(smem, word);
//               load_smem_16(smem); store_global_16(pointer, words), where the compiler might make four accesses;
//               atomic_add(counter, value), uint32_t; take_slot<is_shared>(counter): adds 1 and returns what was there;
//               take_slots(counter, count): adds `count` and returns what was there;
//               take_turn(counter, count): how many calls came before; after the last of `count` calls the counter is 0
//               again; what a caller wrote before is there for later callers
// Registers     opaque(value): returns the int, and hides from the compiler how it was computed
// Barriers      sync_threads() sync_warp(); barrier_sync(barrier, threads) waits at one of 16 barriers until so many
//               threads of the block have come, whole warps; barrier_arrive(barrier, threads) comes and does not wait.
//               Barrier 0 is that of sync_threads(). On sm_90 and later (kHasWarpgroups), barriers of phases, 8 bytes
//               of shared memory each: mbarrier_init(smem, count), once, by one thread, then sync_threads();
//               mbarrier_arrive(smem): a phase ends with its `count`-th arrival; mbarrier_wait(smem, parity): phase 0
//               has parity 0, the next 1, then 0 again; the calling thread knows which of them it waits for
// Warp          shfl(value, lane) shfl_xor(value, mask) shfl_down(value, delta) any_lane(predicate); 4-byte types
// Async copy    cp_async_16(smem, global, valid): 16 bytes, zeros where !valid (then global is not read);
//               cp_async_commit() cp_async_wait<pending>()
// Matrices      ldmatrix_x4(r, row) ldmatrix_x4_trans(r, row): four 8x8 matrices of 16-bit values; lane i names the
//               16-byte row i % 8 of matrix i / 8. mma_m16n8k16<T>(acc, a, b0, b1): T is bf16 or fp16, float32 sums
// Warpgroups    four warps, from a multiple of 128 threads on, that multiply together while their threads go on; on
//               sm_90a alone (kHasWarpgroups). All 128 threads call these functions, with the same descriptors:
//               warpgroup_abt<T>(sums, a, b, adds): [64][16] times [8 kBlocks][16]^T, both described in shared memory;
//               warpgroup_atbt<T>(sums, a, b, adds): [16][64]^T times [8 kBlocks][16]^T, likewise;
//               warpgroup_ab<T>(sums, a, b, adds): [64][16], of which warp i has rows 16 i to 16 i + 15 in registers as
//               the A operand of mma_m16n8k16, times [16][64] in shared memory. Without adds, sums are overwritten;
//               sums[j] holds columns 8 j to 8 j + 7 of a warp's 16 rows, as the sums of mma_m16n8k16.
//               warpgroup_descriptor(address), below, describes a matrix; `+ bytes / 16` describes one further on.
//               A group of products begins with warpgroup_fence() and ends with warpgroup_commit().
//               warpgroup_wait<pending>(sums): all but the newest `pending` groups are done; sums are theirs. Before
//               that, nobody touches their sums, their A registers or their operands in shared memory.
//               stmatrix_x4(row, r) stmatrix_x4_trans(row, r): of one warp; writes to shared memory what ldmatrix_x4
//               and ldmatrix_x4_trans read; stmatrix_x2_trans(row, r0, r1): two matrices, whose rows lanes 0 to 15
//               name.
//               fence_async_proxy(): the calling thread's writes to shared memory, its copies that it has waited for
//               included, become visible to products that follow a barrier.
//               lower_registers<count>() raise_registers<count>(): of each thread of the warpgroup, a multiple of 8
// Bytes         saturate_bytes(v0, v1, v2, v3): each clamped to 0 ... 255, v0 in the lowest byte; select_byte(word, k)
//               select_bytes(low, high, selector): nibble k of the selector, 0 ... 7, names byte k among those of both;
//               dot_low_bytes(bytes, weights, start): start + bytes 0 and 1 times two weights of 16 bits, unsigned;
//               dot_high_bytes(bytes, weights, start): the same of bytes 2 and 3, with signed weights;
//               dot_bytes(bytes, weights, start): start + the four bytes times four weights of 8 bits, unsigned
// Bits          num_bits(word): how many are 1; highest_bit(word): its place, of a word that is not 0;
//               shift_in(bits, word): bits << 1, with the
// highest
//               bit of the word in the lowest place
// Directed      add_down(a, b): the sum of doubles, rounded once, towards minus infinity
// Arithmetic    fast_exp2(x) fast_log2(x) fast_reciprocal(x): the hardware's approximations
// Launch        launch(kernel, Grid{x, y, z}, block, smem_bytes, stream, args...) -> nullptr or the error's text
// Host          num_multiprocessors() of the current GPU; max_smem_bytes() that one of its blocks can have;
// has_wgmma():
//               whether it multiplies by warpgroups and the library's code for it does. By default the emulation has
//               one multiprocessor, sm_90's bytes, and warpgroups
#pragma once

#include "common/float16.h"

namespace lgfast {

struct Grid {
  int x = 1;
  int y = 1;
  int z = 1;
};

constexpr int kWarpSize = 32;

// 16 bytes moved as one access: eight 16-bit values.
struct alignas(16) Vector16 {
  uint32_t words[4];
};

}  // namespace lgfast

#if defined(LGFAST_EMULATION)
#include "device_emulation.h"
#else
#include "ptx/device_ptx.cuh"
#endif

namespace lgfast {

// They divide an unsigned number: the compiler then knows that the results are not negative, and divides by shifts.
__device__ __forceinline__ int lane_index() { return uint32_t(thread_index()) % kWarpSize; }
__device__ __forceinline__ int warp_index() { return uint32_t(thread_index()) / kWarpSize; }
__device__ __forceinline__ int num_warps() { return block_size() / kWarpSize; }

// Describes rows of 128 bytes in shared memory to a product of warpgroups. The 16-byte chunks of a row are exchanged,
// chunk ^= row % 8 (the 128-byte swizzle), where rows count from a multiple of 1,024 bytes. Fields (PTX ISA, matrix
// descriptor): address / 16; from bit 16 and from bit 32, bytes / 16 to the next eight rows; from bit 62, the swizzle.
__device__ __forceinline__ uint64_t warpgroup_descriptor(uint32_t address) {
  constexpr uint64_t kEightRows = 8 * 128 / 16, kSwizzle128 = 1;
  return kSwizzle128 << 62 | kEightRows << 32 | kEightRows << 16 | (address & 0x3ffff) >> 4;
}

// Describes what lies `bytes` further on, by 32-bit arithmetic.
__device__ __forceinline__ uint64_t advance_descriptor(uint64_t descriptor, int bytes) {
  return descriptor >> 32 << 32 | (uint32_t(descriptor) + uint32_t(bytes / 16));
}

}  // namespace lgfast
