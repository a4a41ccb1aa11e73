// Products of warpgroups on the host. The contract is csrc/common/device.cuh's.
//
// A product is done at the wait for its group, from a copy of its operands in shared memory that was made when it was
// issued. Until then AddressSanitizer refuses every access to its sums and to its A operand in registers. The emulation
// ends the program where
//   - a group of products does not begin with warpgroup_fence();
//   - an operand in shared memory lies outside the block's, or is no matrix with the 128-byte swizzle;
//   - bytes of an operand were written by copies or by store_smem, and their writer has not waited for the copy and
//     called fence_async_proxy() since;
//   - bytes of an operand are written before the wait;
//   - the threads are not those of four warps from a multiple of 128 on, or do not name the same operands;
//   - a kernel ends with products that nobody waited for;
//   - the warpgroups ask for more registers than the block began with: on a GPU one of them waits for ever.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace lgfast {
namespace emulation {

struct ProductLane {
  float* sums;        // [blocks][4]
  const uint32_t* a;  // [4], or nullptr: in shared memory
  uint64_t a_descriptor, b_descriptor;
  bool adds;
  int blocks;                   // of eight columns
  bool is_fp16, is_transposed;  // is_transposed: the right operand, whose rows are the depth
  bool is_a_transposed;
};

void issue_product(void* const* lanes);
void begin_products(void* const*);
void commit_products(void* const*);
void wait_for_products(void* const* pending);  // const int*
void set_registers(void* const* count);        // const int*
void fence_writes();
// Of a block: begins, and ends.
void begin_warpgroups(int threads, int smem_bytes);
void end_warpgroups();

}  // namespace emulation

constexpr bool kHasWarpgroups = true;

inline void fence_async_proxy() { emulation::fence_writes(); }
inline void warpgroup_fence(LGFAST_SITE_ARGUMENTS) {
  emulation::warpgroup_collective(LGFAST_SITE, nullptr, emulation::begin_products);
}
inline void warpgroup_commit(LGFAST_SITE_ARGUMENTS) {
  emulation::warpgroup_collective(LGFAST_SITE, nullptr, emulation::commit_products);
}
template <int kPending, int kBlocks>
void warpgroup_wait(float (&)[kBlocks][4], LGFAST_SITE_ARGUMENTS) {
  int pending = kPending;
  emulation::warpgroup_collective(LGFAST_SITE, &pending, emulation::wait_for_products);
}
template <typename T, int kBlocks>
void warpgroup_abt(float (&sums)[kBlocks][4], uint64_t a, uint64_t b, bool adds, LGFAST_SITE_ARGUMENTS) {
  emulation::ProductLane lane{&sums[0][0], nullptr, a, b, adds, kBlocks, !std::is_same_v<T, bf16>, false, false};
  emulation::warpgroup_collective(LGFAST_SITE, &lane, emulation::issue_product);
}
template <typename T>
void warpgroup_ab(float (&sums)[8][4], const uint32_t (&a)[4], uint64_t b, bool adds, LGFAST_SITE_ARGUMENTS) {
  emulation::ProductLane lane{&sums[0][0], a, 0, b, adds, 8, !std::is_same_v<T, bf16>, true, false};
  emulation::warpgroup_collective(LGFAST_SITE, &lane, emulation::issue_product);
}
template <typename T, int kBlocks>
void warpgroup_atbt(float (&sums)[kBlocks][4], uint64_t a, uint64_t b, bool adds, LGFAST_SITE_ARGUMENTS) {
  emulation::ProductLane lane{&sums[0][0], nullptr, a, b, adds, kBlocks, !std::is_same_v<T, bf16>, false, true};
  emulation::warpgroup_collective(LGFAST_SITE, &lane, emulation::issue_product);
}
template <int kCount>
void lower_registers(LGFAST_SITE_ARGUMENTS) {
  int count = kCount;
  emulation::warpgroup_collective(LGFAST_SITE, &count, emulation::set_registers);
}
template <int kCount>
void raise_registers(LGFAST_SITE_ARGUMENTS) {
  int count = kCount;
  emulation::warpgroup_collective(LGFAST_SITE, &count, emulation::set_registers);
}

}  // namespace lgfast
