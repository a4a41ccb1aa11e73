// A device layer that runs nothing: launch() records a launch, with its parameters as the kernel would receive them.
// csrc/common/device.cuh includes this header in place of the emulation's header of the same name. Kernels are
// compiled, but never called.
#pragma once

#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace lgfast {
namespace recorder {

struct Launch {
  std::string kernel;  // mangled, as in the machine code
  int grid[3], block, smem_bytes;
  std::vector<unsigned char> parameters;
};

inline std::vector<Launch>& launches() {
  static std::vector<Launch> found;
  return found;
}
inline int& multiprocessors() {
  static int count = 132;
  return count;
}
inline int& smem_limit() {
  static int bytes = 227 * 1024;
  return bytes;
}
inline bool& has_wgmma() {
  static bool has = false;
  return has;
}

template <typename T>
void append(std::vector<unsigned char>& bytes, const T& value) {
  bytes.resize((bytes.size() + alignof(T) - 1) / alignof(T) * alignof(T));
  const auto* first = reinterpret_cast<const unsigned char*>(&value);
  bytes.insert(bytes.end(), first, first + sizeof(T));
}

}  // namespace recorder

inline int thread_index() { return 0; }
inline int block_size() { return 1; }
inline int block_index() { return 0; }
inline int block_index_y() { return 0; }
inline int block_index_z() { return 0; }
inline int grid_size() { return 1; }
inline int grid_size_z() { return 1; }
inline unsigned char* dynamic_smem() { return nullptr; }
inline uint32_t smem_address(const void*) { return 0; }
inline void atomic_add(uint32_t*, uint32_t) {}
template <bool>
uint32_t take_slot(uint32_t*) {
  return 0;
}
inline uint32_t take_slots(uint32_t*, uint32_t) { return 0; }
inline uint32_t take_turn(uint32_t*, uint32_t) { return 0; }
inline void sync_threads() {}
inline void sync_warp() {}
inline void barrier_sync(int, int) {}
inline void barrier_arrive(int, int) {}
inline void mbarrier_init(uint32_t, int) {}
inline void mbarrier_arrive(uint32_t) {}
inline void mbarrier_wait(uint32_t, int) {}
template <typename T>
T shfl(T value, int) {
  return value;
}
template <typename T>
T shfl_xor(T value, int) {
  return value;
}
template <typename T>
T shfl_down(T value, int) {
  return value;
}
inline bool any_lane(bool predicate) { return predicate; }
inline int opaque(int value) { return value; }
inline void store_smem_16(uint32_t, const Vector16&) {}
inline void store_smem_4(uint32_t, uint32_t) {}
inline Vector16 load_smem_16(uint32_t) { return {}; }
inline void store_global_16(void*, const Vector16&) {}
inline void cp_async_16(uint32_t, const void*, bool) {}
inline void cp_async_commit() {}
template <int kPending>
void cp_async_wait() {}
inline void ldmatrix_x4(uint32_t (&)[4], uint32_t) {}
inline void ldmatrix_x4_trans(uint32_t (&)[4], uint32_t) {}
template <typename T>
void mma_m16n8k16(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t) {}
constexpr bool kHasWarpgroups = true;
inline void fence_async_proxy() {}
inline void warpgroup_fence() {}
inline void warpgroup_commit() {}
template <int kPending, int kBlocks>
void warpgroup_wait(float (&)[kBlocks][4]) {}
template <typename T, int kBlocks>
void warpgroup_abt(float (&)[kBlocks][4], uint64_t, uint64_t, bool) {}
template <typename T>
void warpgroup_ab(float (&)[8][4], const uint32_t (&)[4], uint64_t, bool) {}
template <typename T, int kBlocks>
void warpgroup_atbt(float (&)[kBlocks][4], uint64_t, uint64_t, bool) {}
inline void stmatrix_x4(uint32_t, const uint32_t (&)[4]) {}
inline void stmatrix_x2_trans(uint32_t, uint32_t, uint32_t) {}
inline void stmatrix_x4_trans(uint32_t, const uint32_t (&)[4]) {}
template <int kCount>
void lower_registers() {}
template <int kCount>
void raise_registers() {}
inline uint32_t saturate_bytes(int, int, int, int) { return 0; }
inline int select_byte(uint32_t, int) { return 0; }
inline double add_down(double a, double) { return a; }
inline uint32_t select_bytes(uint32_t, uint32_t, uint32_t) { return 0; }
inline int num_bits(uint32_t) { return 0; }
inline int highest_bit(uint32_t) { return 0; }
inline uint32_t shift_in(uint32_t, uint32_t) { return 0; }
inline int dot_low_bytes(uint32_t, uint32_t, int) { return 0; }
inline int dot_high_bytes(uint32_t, uint32_t, int) { return 0; }
inline uint32_t dot_bytes(uint32_t, uint32_t, uint32_t) { return 0; }
inline float fast_exp2(float x) { return x; }
inline float fast_log2(float x) { return x; }
inline float fast_reciprocal(float x) { return x; }
inline int num_multiprocessors() { return recorder::multiprocessors(); }
inline int max_smem_bytes() { return recorder::smem_limit(); }
inline bool has_wgmma() { return recorder::has_wgmma(); }

template <typename... Params, typename... Args>
const char* launch(void (*kernel)(Params...), Grid grid, int block, int smem_bytes, void* /*stream*/, Args... args) {
  Dl_info symbol{};
  if (dladdr(reinterpret_cast<const void*>(kernel), &symbol) == 0 || symbol.dli_sname == nullptr) return "no symbol";
  recorder::Launch found{symbol.dli_sname, {grid.x, grid.y, grid.z}, block, smem_bytes, {}};
  (recorder::append<Params>(found.parameters, Params(args)), ...);
  recorder::launches().push_back(found);
  return nullptr;
}

}  // namespace lgfast
