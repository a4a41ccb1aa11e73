// The device layer on the host, for tests. csrc/common/device.cuh holds its contract.
//
// The emulation runs one block at a time; each thread of the block is a fiber. At a warp-wide function the fibers of a
// warp meet: the last of the 32 lanes to arrive checks that all wait at the same line of the source, and does the work
// for all. A seed draws the order of the blocks, and which runnable fiber goes next: with even seeds any, with odd ones
// mostly those of some warpgroups, which run as far ahead of the others as barriers let them. If a result depends on
// the seed, the kernel has a race.
//
// Dynamic shared memory is a heap block of exactly the launch's size, filled with NaN patterns. So AddressSanitizer
// sees an access outside it, and a read of memory that was never written shows in the result.
//
// The emulation counts bank conflicts, which change no result, for ldmatrix and cp_async_16.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace lgfast {
namespace emulation {

// A call in the kernel's source.
struct Site {
  const char* function;
  const char* file;
  int line;
};

struct ThreadPosition {
  int thread, block_size, block_x, block_y, block_z;
  Grid grid;
};

// Shared memory answers 16 bytes of each of 8 lanes in one turn if they lie in 8 different groups of four banks. These
// count the turns that it needs beyond the first.
struct BankConflicts {
  int64_t ldmatrix = 0;  // and stmatrix
  int64_t copies = 0;    // of cp_async_16; the n-th call of each lane of a warp counts as one instruction
};

void set_seed(uint64_t seed);
const BankConflicts& bank_conflicts();  // since the program began
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

const ThreadPosition& position();
unsigned char* smem();
void block_barrier(Site site);
void named_barrier(Site site, int barrier, int threads, bool waits);
// The current thread waits until another one wakes it.
void wait_until_woken(Site site);
void wake_thread(int thread);
// Barriers of mbarrier_init. Those that no barrier of the block followed yet are known to the thread that began them.
void begin_phase_barrier(Site site, uint32_t address, int count);
void arrive_at_phase_barrier(Site site, uint32_t address);
void wait_at_phase_barrier(Site site, uint32_t address, int parity);
void publish_phase_barriers();
void forget_phase_barriers();
constexpr int kWarpgroupSize = 4 * kWarpSize;
// Runs `execute` once, with the `arguments` of the 32 lanes in lane order, when all lanes have arrived.
void warp_collective(Site site, void* arguments, void (*execute)(void* const* lanes));
void warpgroup_collective(Site site, void* arguments, void (*execute)(void* const* lanes));  // of 128 threads
unsigned char* smem_row(uint32_t address, const char* function);  // of 16 bytes, after a check of the address
int smem_bytes();
void note_smem_write(uint32_t address);  // of 16 bytes or fewer, by this thread
void copy_async(uint32_t smem, const void* global, bool valid);
bool is_being_copied(uint32_t address);  // to 16 bytes, by this thread
void commit_copies();
void wait_copies(int pending_groups);
const char* launch_blocks(const std::function<void()>& kernel, Grid grid, int block, int smem_bytes);

struct LdmatrixLane {
  const void* row;
  uint32_t* r;
};
struct MmaLane {
  float* acc;
  const uint32_t* a;
  uint32_t b[2];
};
struct StmatrixLane {
  uint32_t row;
  const uint32_t* r;
};
template <bool kTrans>
void ldmatrix(void* const* lanes);
template <bool kTrans, int kMatrices>
void stmatrix(void* const* lanes);
template <typename T>
void mma(void* const* lanes);

inline void do_nothing(void* const*) {}

template <typename T>
struct ShuffleLane {
  T value;
  int source;
  T result;
};

template <typename T>
T shuffle(T value, int source, Site site) {
  static_assert(sizeof(T) == 4);
  ShuffleLane<T> lane{value, source, value};
  warp_collective(site, &lane, [](void* const* lanes) {
    for (int i = 0; i < kWarpSize; ++i) {
      auto* to = static_cast<ShuffleLane<T>*>(lanes[i]);
      if (to->source < kWarpSize) to->result = static_cast<ShuffleLane<T>*>(lanes[to->source])->value;
    }
  });
  return lane.result;
}

}  // namespace emulation

#define LGFAST_SITE_ARGUMENTS const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define LGFAST_SITE \
  emulation::Site { __func__, file, line }

inline int thread_index() { return emulation::position().thread; }
inline int block_size() { return emulation::position().block_size; }
inline int block_index() { return emulation::position().block_x; }
inline int block_index_y() { return emulation::position().block_y; }
inline int block_index_z() { return emulation::position().block_z; }
inline int grid_size() { return emulation::position().grid.x; }
inline int grid_size_z() { return emulation::position().grid.z; }

inline unsigned char* dynamic_smem() { return emulation::smem(); }
inline uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - emulation::smem());
}
inline void atomic_add(uint32_t* counter, uint32_t value) { *counter += value; }  // fibers switch at collectives only
template <bool kIsShared>
uint32_t take_slot(uint32_t* counter) {
  return (*counter)++;
}
inline uint32_t take_slots(uint32_t* counter, uint32_t count) {
  *counter += count;
  return *counter - count;
}
inline uint32_t take_turn(uint32_t* counter, uint32_t count) {
  if (*counter >= count) emulation::fail("take_turn: the counter is %u of %u: another launch uses it", *counter, count);
  const uint32_t before = *counter;
  *counter = before + 1 == count ? 0 : before + 1;
  return before;
}

inline void sync_threads(LGFAST_SITE_ARGUMENTS) { emulation::block_barrier(LGFAST_SITE); }
inline void sync_warp(LGFAST_SITE_ARGUMENTS) {
  emulation::warp_collective(LGFAST_SITE, nullptr, emulation::do_nothing);
}

template <typename T>
T shfl(T value, int lane, LGFAST_SITE_ARGUMENTS) {
  return emulation::shuffle(value, lane & (kWarpSize - 1), LGFAST_SITE);
}
template <typename T>
T shfl_xor(T value, int mask, LGFAST_SITE_ARGUMENTS) {
  return emulation::shuffle(value, (thread_index() % kWarpSize) ^ mask, LGFAST_SITE);
}
template <typename T>
T shfl_down(T value, int delta, LGFAST_SITE_ARGUMENTS) {
  return emulation::shuffle(value, thread_index() % kWarpSize + delta, LGFAST_SITE);
}

inline bool any_lane(bool predicate, LGFAST_SITE_ARGUMENTS) {
  struct Lane {
    bool predicate;
  } lane{predicate};
  emulation::warp_collective(LGFAST_SITE, &lane, [](void* const* lanes) {
    bool any = false;
    for (int i = 0; i < kWarpSize; ++i) any = any || static_cast<Lane*>(lanes[i])->predicate;
    for (int i = 0; i < kWarpSize; ++i) static_cast<Lane*>(lanes[i])->predicate = any;
  });
  return lane.predicate;
}

inline void barrier_sync(int barrier, int threads, LGFAST_SITE_ARGUMENTS) {
  emulation::named_barrier(LGFAST_SITE, barrier, threads, true);
}
inline void barrier_arrive(int barrier, int threads, LGFAST_SITE_ARGUMENTS) {
  emulation::named_barrier(LGFAST_SITE, barrier, threads, false);
}
inline void mbarrier_init(uint32_t barrier, int count, LGFAST_SITE_ARGUMENTS) {
  emulation::begin_phase_barrier(LGFAST_SITE, barrier, count);
}
inline void mbarrier_arrive(uint32_t barrier, LGFAST_SITE_ARGUMENTS) {
  emulation::arrive_at_phase_barrier(LGFAST_SITE, barrier);
}
inline void mbarrier_wait(uint32_t barrier, int parity, LGFAST_SITE_ARGUMENTS) {
  emulation::wait_at_phase_barrier(LGFAST_SITE, barrier, parity);
}

inline int opaque(int value) { return value; }
inline void store_smem_16(uint32_t smem, const Vector16& value) {
  emulation::note_smem_write(smem);
  std::memcpy(emulation::smem_row(smem, __func__), &value, sizeof(value));
}
inline void store_smem_4(uint32_t smem, uint32_t value) {
  emulation::note_smem_write(smem);
  std::memcpy(emulation::smem_row(smem / 16 * 16, __func__) + smem % 16, &value, sizeof(value));
}
inline Vector16 load_smem_16(uint32_t smem) {
  Vector16 value;
  std::memcpy(&value, emulation::smem_row(smem, __func__), sizeof(value));
  return value;
}
inline void store_global_16(void* global, const Vector16& value) {
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
    emulation::fail("%s: the address is not a multiple of 16", __func__);
  std::memcpy(global, &value, sizeof(value));
}
inline void cp_async_16(uint32_t smem, const void* global, bool valid) { emulation::copy_async(smem, global, valid); }
inline void cp_async_commit() { emulation::commit_copies(); }
template <int kPending>
void cp_async_wait() {
  emulation::wait_copies(kPending);
}

inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t row, LGFAST_SITE_ARGUMENTS) {
  emulation::LdmatrixLane lane{emulation::smem_row(row, __func__), r};
  emulation::warp_collective(LGFAST_SITE, &lane, emulation::ldmatrix<false>);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row, LGFAST_SITE_ARGUMENTS) {
  emulation::LdmatrixLane lane{emulation::smem_row(row, __func__), r};
  emulation::warp_collective(LGFAST_SITE, &lane, emulation::ldmatrix<true>);
}

inline void stmatrix_x4(uint32_t row, const uint32_t (&r)[4], LGFAST_SITE_ARGUMENTS) {
  emulation::note_smem_write(row);
  emulation::StmatrixLane lane{row, r};
  emulation::warp_collective(LGFAST_SITE, &lane, emulation::stmatrix<false, 4>);
}
inline void stmatrix_x4_trans(uint32_t row, const uint32_t (&r)[4], LGFAST_SITE_ARGUMENTS) {
  emulation::note_smem_write(row);
  emulation::StmatrixLane lane{row, r};
  emulation::warp_collective(LGFAST_SITE, &lane, emulation::stmatrix<true, 4>);
}
inline void stmatrix_x2_trans(uint32_t row, uint32_t r0, uint32_t r1, LGFAST_SITE_ARGUMENTS) {
  const uint32_t r[2] = {r0, r1};
  if (thread_index() % kWarpSize < 16) emulation::note_smem_write(row);
  emulation::StmatrixLane lane{row, r};
  emulation::warp_collective(LGFAST_SITE, &lane, emulation::stmatrix<true, 2>);
}

template <typename T>
void mma_m16n8k16(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, LGFAST_SITE_ARGUMENTS) {
  emulation::MmaLane lane{acc, a, {b0, b1}};
  emulation::warp_collective(LGFAST_SITE, &lane, emulation::mma<T>);
}

inline uint32_t saturate_bytes(int v0, int v1, int v2, int v3) {
  const auto byte = [](int value) { return uint32_t(value < 0 ? 0 : value > 255 ? 255 : value); };
  return byte(v0) | byte(v1) << 8 | byte(v2) << 16 | byte(v3) << 24;
}

inline int select_byte(uint32_t word, int k) { return int((word >> (8 * k)) & 255); }

inline uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = uint64_t(high) << 32 | low;
  uint32_t word = 0;
  for (int k = 0; k < 4; ++k) word |= uint32_t(both >> (8 * (selector >> (4 * k) & 7)) & 255) << (8 * k);
  return word;
}
inline int num_bits(uint32_t word) { return __builtin_popcount(word); }
inline int highest_bit(uint32_t word) { return 31 - __builtin_clz(word); }
inline uint32_t shift_in(uint32_t bits, uint32_t word) { return bits << 1 | word >> 31; }

inline int dot_low_bytes(uint32_t bytes, uint32_t weights, int start) {
  return start + int(select_byte(bytes, 0) * (weights & 0xffff) + select_byte(bytes, 1) * (weights >> 16));
}
inline int dot_high_bytes(uint32_t bytes, uint32_t weights, int start) {
  return start + select_byte(bytes, 2) * int16_t(weights & 0xffff) + select_byte(bytes, 3) * int16_t(weights >> 16);
}
inline uint32_t dot_bytes(uint32_t bytes, uint32_t weights, uint32_t start) {
  for (int k = 0; k < 4; ++k) start += select_byte(bytes, k) * select_byte(weights, k);
  return start;
}

inline double add_down(double a, double b) {
  const double sum = a + b, b_part = sum - a;
  const double error = (a - (sum - b_part)) + (b - b_part);  // sum + error is exact
  return error < 0 ? std::nextafter(sum, -HUGE_VAL) : sum;
}

inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_log2(float x) { return std::log2(x); }
inline float fast_reciprocal(float x) { return 1.0f / x; }

// By default one, so that kernels which spread over idle multiprocessors also run their loops. A test may set another.
inline int num_multiprocessors() {
  const char* text = std::getenv("LGFAST_EMULATED_MULTIPROCESSORS");
  return text == nullptr ? 1 : std::atoi(text);
}
// By default that of sm_90. A test may set another.
inline int max_smem_bytes() {
  const char* text = std::getenv("LGFAST_EMULATED_SMEM_BYTES");
  return text == nullptr ? 227 * 1024 : std::atoi(text);
}

// Whether kernels for warpgroups run; a test may ask for a GPU without.
inline bool has_wgmma() {
  const char* text = std::getenv("LGFAST_EMULATED_WGMMA");
  return text == nullptr || std::atoi(text) != 0;
}

template <typename... Params, typename... Args>
const char* launch(void (*kernel)(Params...), Grid grid, int block, int smem_bytes, void* /*stream*/, Args... args) {
  return emulation::launch_blocks([&] { kernel(args...); }, grid, block, smem_bytes);
}

}  // namespace lgfast

#include "warpgroup_emulation.h"
