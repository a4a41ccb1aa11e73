// Small kernels, some with a planted fault. The emulation must run the good ones, and name what is wrong in the others.
// Usage: self_test CASE SEED. Prints the output values of the kernel, one on each line, then the bank conflicts of
// ldmatrix and of cp_async_16.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/counter_places.h"
#include "common/device.cuh"
#include "common/last_block.cuh"

namespace {

using namespace lgfast;

// Sums the block's thread indices with shuffles and shared memory; every thread writes the sum.
template <bool kBarrier>
__global__ void block_sum_kernel(float* out, int extra) {
  float* partial = reinterpret_cast<float*>(dynamic_smem());
  float value = float(thread_index());
  for (int mask = 16; mask > 0; mask /= 2) value += shfl_xor(value, mask);
  if (lane_index() == 0) partial[warp_index() + extra] = value;
  if (kBarrier) sync_threads();
  float sum = 0.0f;
  for (int warp = 0; warp < num_warps(); ++warp) sum += partial[warp];
  out[thread_index()] = sum;
}

__global__ void divergent_shuffle_kernel(float* out) {
  float value = 1.0f;
  if (lane_index() < 16) {
    value = shfl_xor(value, 1);
  } else {
    value = shfl(value, 0);
  }
  out[thread_index()] = value;
}

__global__ void partial_barrier_kernel(float* out) {
  if (thread_index() < 40) sync_threads();
  out[thread_index()] = 1.0f;
}

enum class Fault { kNone, kTurnBeforePart, kNoBarrier };

// Every block writes a part, the last to end their sum to every value of `out`.
template <Fault kFault>
__global__ void last_block_kernel(float* parts, uint32_t* counter, float* out, int blocks) {
  int* flag = reinterpret_cast<int*>(dynamic_smem());
  const auto write_part = [&] {
    if (thread_index() == 0) parts[block_index()] = float(block_index() + 1);
  };
  if (kFault != Fault::kTurnBeforePart) write_part();
  bool is_last;
  if (kFault == Fault::kNoBarrier) {
    if (thread_index() == 0) *flag = take_turn(counter, uint32_t(blocks)) == uint32_t(blocks) - 1;
    is_last = *flag != 0;
  } else {
    is_last = is_last_block(counter, blocks, flag);
  }
  float sum = 0.0f;
  for (int block = 0; is_last && block < blocks; ++block) sum += parts[block];
  if (is_last) out[thread_index()] = sum;
  if (kFault == Fault::kTurnBeforePart) write_part();
}

// Thread i reads what thread i copied; without the wait it reads whatever was there before.
template <bool kWait, int kPitch>
__global__ void async_copy_kernel(const float* in, float* out) {
  float* mine = reinterpret_cast<float*>(dynamic_smem()) + kPitch * thread_index();
  cp_async_16(smem_address(mine), in + 4 * thread_index(), thread_index() % 2 == 0);
  cp_async_commit();
  if (kWait) cp_async_wait<0>();
  out[thread_index()] = *mine;
  if (!kWait) cp_async_wait<0>();
}

// out[16][8] = a[16][16] b[16][8] in bf16. b is stored as [n][k], or as [k][n] and read transposed.
template <bool kTrans>
__global__ void matmul_kernel(const float* a, const float* b, float* out) {
  bf16* a_tile = reinterpret_cast<bf16*>(dynamic_smem());
  bf16* b_tile = a_tile + 256;
  for (int i = thread_index(); i < 256; i += 32) a_tile[i] = from_float<bf16>(a[i]);
  for (int i = thread_index(); i < 128; i += 32) b_tile[i] = from_float<bf16>(b[i]);
  sync_warp();
  const int lane = lane_index();
  uint32_t a_fragment[4], b_fragment[4];
  ldmatrix_x4(a_fragment, smem_address(a_tile + 16 * (lane % 16) + 8 * (lane / 16)));
  if (kTrans) {
    ldmatrix_x4_trans(b_fragment, smem_address(b_tile + 8 * (lane % 16)));
  } else {
    ldmatrix_x4(b_fragment, smem_address(b_tile + 16 * (lane % 8) + 8 * (lane / 8 % 2)));
  }
  float acc[4] = {};
  mma_m16n8k16<bf16>(acc, a_fragment, b_fragment[0], b_fragment[1]);
  for (int i = 0; i < 4; ++i) out[8 * (lane / 4 + 8 * (i / 2)) + 2 * (lane % 4) + i % 2] = acc[i];
}

// What is wrong in a product of a warpgroup, if anything.
enum class ProductFault {
  kNone,
  kEarlySums,
  kEarlyA,
  kOverwritten,
  kOverwrittenByCopy,
  kNoProxyFence,
  kFenceBeforeTheCopy,
  kNoGroupFence,
  kNoWait,
  kBeyondMemory,
  kMisaligned,
  kOtherSwizzle,
  kHalfAWarpgroup,
  kOtherOperands,
  kOverwrittenByMatrix,
  kNoFenceAfterMatrix,
  kBeyondTheRow,
};

__device__ void fill_rows(uint32_t tile, const float* rows, int count) {
  for (int i = thread_index(); i < count * 8; i += 128) {
    const int row = i / 8, chunk = i % 8;
    Vector16 words;
    for (int k = 0; k < 4; ++k) {
      const float* pair = rows + (row * 64 + 8 * chunk + 2 * k) % 256;
      words.words[k] = pack2<bf16>(pair[0], pair[1]);
    }
    store_smem_16(tile + row * 128 + 16 * (chunk ^ row % 8), words);
  }
}

// out[row][n] of rows 0 and 40: [64][16] times [64][16]^T, twice, over columns 16 to 31 of 64, from shared memory; or
// [64][16] in registers times [16][64], the first rows of the second tile.
template <ProductFault kFault, bool kFromRegisters>
__global__ void warpgroup_kernel(const float* in, float* out) {
  if (kFault == ProductFault::kHalfAWarpgroup && thread_index() >= 64) return;
  const uint32_t a_tile = smem_address(dynamic_smem()), b_tile = a_tile + 64 * 128;
  fill_rows(a_tile, in, 64);
  if (kFault == ProductFault::kFenceBeforeTheCopy) {
    cp_async_16(a_tile + 16 * thread_index(), in, true);
    cp_async_commit();
  }
  fill_rows(b_tile, in + 100, 64);
  if (kFault != ProductFault::kNoProxyFence) fence_async_proxy();
  cp_async_wait<0>();
  if (kFault != ProductFault::kHalfAWarpgroup) barrier_sync(3, 128);
  float sums[8][4] = {};
  uint32_t a[4];
  const int row = warp_index() * 16 + lane_index() / 4, column = 2 * (lane_index() % 4);
  for (int k = 0; k < 4; ++k) {
    const float* pair = in + ((row + k % 2 * 8) * 64 + column + k / 2 * 8) % 256;
    a[k] = pack2<bf16>(pair[0], pair[1]);
  }
  uint64_t first = warpgroup_descriptor(a_tile) + 2, second = warpgroup_descriptor(b_tile) + (kFromRegisters ? 0 : 2);
  if (kFault == ProductFault::kBeyondMemory) second += 8 * 128 / 16 * 2;
  if (kFault == ProductFault::kMisaligned) second += 128 / 16;
  if (kFault == ProductFault::kOtherSwizzle) second ^= uint64_t{3} << 62;
  if (kFault == ProductFault::kOtherOperands && thread_index() == 70) second += 2;
  if (kFault != ProductFault::kNoGroupFence) warpgroup_fence();
  if constexpr (kFromRegisters) {
    warpgroup_ab<bf16>(sums, a, second, false);
  } else {
    warpgroup_abt<bf16>(sums, first, second, false);
    warpgroup_abt<bf16>(sums, first, second, true);
  }
  warpgroup_commit();
  if (kFault == ProductFault::kOverwritten && thread_index() == 9) store_smem_4(a_tile + 32, 0);
  if (kFault == ProductFault::kOverwrittenByCopy && thread_index() == 9) cp_async_16(a_tile + 32, in, true);
  if (kFault == ProductFault::kEarlySums) out[0] = sums[0][0];
  if (kFault == ProductFault::kEarlyA) a[1] = 0;
  if (kFault != ProductFault::kNoWait) warpgroup_wait<0>(sums);
  if (kFault == ProductFault::kNoWait) return;
  cp_async_wait<0>();
  if (lane_index() >= 4 || (warp_index() != 0 && warp_index() != 2)) return;
  for (int i = 0; i < 32; ++i) {  // rows 0 and 40
    const int half = i / 2 % 2, n = i / 4 * 8 + column + i % 2;
    if (half == (warp_index() == 2)) out[64 * half + n] = sums[i / 4][i % 4];
  }
}

// Rows 0 and 40 of a [16][64] matrix, transposed, times [16][16]^T: out[2][64].
template <ProductFault kFault>
__global__ void transposed_kernel(const float* in, float* out) {
  constexpr int kBlocks = 2;
  const uint32_t a_tile = smem_address(dynamic_smem()), b_tile = a_tile + 16 * 128;
  fill_rows(a_tile, in, 16);
  fill_rows(b_tile, in + 100, 16);
  if (kFault != ProductFault::kNoProxyFence) fence_async_proxy();
  barrier_sync(3, 128);
  uint64_t first = warpgroup_descriptor(a_tile), second = warpgroup_descriptor(b_tile);
  if (kFault == ProductFault::kBeyondMemory) second += 8 * 128 / 16;
  if (kFault == ProductFault::kMisaligned) first += 128 / 16;
  if (kFault == ProductFault::kBeyondTheRow) first += 2;
  if (kFault == ProductFault::kOtherSwizzle) first ^= uint64_t{3} << 62;
  if (kFault == ProductFault::kOtherOperands && thread_index() == 70) second += 2;
  float sums[kBlocks][4];
  if (kFault != ProductFault::kNoGroupFence) warpgroup_fence();
  warpgroup_atbt<bf16>(sums, first, second, false);
  warpgroup_commit();
  const uint32_t read = a_tile + 15 * 128 + 64;
  if (kFault == ProductFault::kOverwritten && thread_index() == 9) store_smem_4(read, 0);
  if (kFault == ProductFault::kEarlySums) out[0] = sums[kBlocks - 1][3];
  if (kFault == ProductFault::kNoWait) return;
  warpgroup_wait<0>(sums);
  if (lane_index() >= 4 || (warp_index() != 0 && warp_index() != 2)) return;
  for (int i = 0; i < 4 * kBlocks; ++i) {
    const int half = i / 2 % 2, n = i / 4 * 8 + 2 * lane_index() + i % 2;
    if (half == (warp_index() == 2)) out[64 * half + n] = sums[i / 4][i % 4];
  }
}

// Five warpgroups, of which three ask for kCount registers a thread.
template <int kCount>
__global__ void registers_kernel(float* out) {
  const int group = warp_index() / 4;
  if (group < 3) {
    raise_registers<kCount>();
  } else if (group == 3) {
    lower_registers<80>();
  } else {
    lower_registers<40>();
  }
  out[thread_index() % 128] = float(kCount);
}

// out[64][2]: columns 0 and 1 of [16][64]^T times [8][16]^T. Each of four matrices of the left operand is stored by
// stmatrix, from registers that hold it as it is, or transposed.
template <ProductFault kFault, bool kTransposed>
__global__ void stored_matrix_kernel(const float* in, float* out) {
  const uint32_t a_tile = smem_address(dynamic_smem()), b_tile = a_tile + 16 * 128;
  const int lane = lane_index(), row = lane % 8 + 8 * (lane / 8 % 2), chunk = 2 * warp_index() + lane / 16;
  uint32_t r[4];
  for (int k = 0; k < 4; ++k) {  // matrix k: rows 8 (k % 2) to + 7, columns 16 warp + 8 (k / 2) to + 7
    const int down = lane / 4, across = 2 * (lane % 4);
    const auto value = [&](int i, int j) {
      return in[((8 * (k % 2) + i) * 64 + 16 * warp_index() + 8 * (k / 2) + j) % 256];
    };
    r[k] = kTransposed ? pack2<bf16>(value(across, down), value(across + 1, down))
                       : pack2<bf16>(value(down, across), value(down, across + 1));
  }
  fill_rows(b_tile, in + 100, 8);
  fence_async_proxy();
  const uint32_t to = a_tile + row * 128 + 16 * (chunk ^ row % 8);
  if constexpr (kTransposed) {
    stmatrix_x4_trans(to, r);
  } else {
    stmatrix_x4(to, r);
  }
  if (kFault != ProductFault::kNoFenceAfterMatrix) fence_async_proxy();
  barrier_sync(3, 128);
  float sums[1][4];
  warpgroup_fence();
  warpgroup_atbt<bf16>(sums, warpgroup_descriptor(a_tile), warpgroup_descriptor(b_tile), false);
  warpgroup_commit();
  if (kFault == ProductFault::kOverwrittenByMatrix) stmatrix_x2_trans(to, r[0], r[1]);
  warpgroup_wait<0>(sums);
  if (lane % 4 != 0) return;
  for (int i = 0; i < 4; ++i) out[2 * (16 * warp_index() + lane / 4 + 8 * (i / 2)) + i % 2] = sums[0][i];
}

// Stores two matrices transposed; lane i writes row i.
__global__ void store_two_matrices_kernel(const float* in, float* out) {
  const int lane = lane_index();
  bf16* tile = reinterpret_cast<bf16*>(dynamic_smem());
  stmatrix_x2_trans(smem_address(tile + 8 * (lane % 16)), pack2<bf16>(in[2 * lane], in[2 * lane + 1]),
                    pack2<bf16>(in[64 + 2 * lane], in[64 + 2 * lane + 1]));
  for (int i = lane; i < 128; i += 32) out[i] = to_float(tile[i]);
}

// A warp that passes a barrier tells another one, which waits there, that its number is in shared memory.
template <bool kSameCount>
__global__ void named_barrier_kernel(float* out) {
  float* number = reinterpret_cast<float*>(dynamic_smem());
  if (warp_index() == 0) {
    for (int i = 0; i < 3; ++i) {
      if (i > 0) barrier_sync(2, 64);
      if (lane_index() == 0) *number = float(i);
      barrier_arrive(1, kSameCount ? 64 : 32);
    }
  } else {
    for (int i = 0; i < 3; ++i) {
      barrier_sync(1, 64);
      out[32 * i + lane_index()] = *number;
      if (i < 2) barrier_arrive(2, 64);
    }
  }
}

enum class PhaseFault { kNone, kNoSync, kTwice, kOtherCount, kNotBegun, kOtherParity };

// A warp hands four numbers, one after the other, to another one, which gives each place back.
template <PhaseFault kFault>
__global__ void phase_barrier_kernel(float* out) {
  float* number = reinterpret_cast<float*>(dynamic_smem());
  const uint32_t full = smem_address(dynamic_smem()) + 16, empty = full + 8;
  if (thread_index() == 0) {
    mbarrier_init(full, 1);
    mbarrier_init(empty, kFault == PhaseFault::kOtherCount ? 33 : 32);
  }
  if (kFault == PhaseFault::kNoSync) {
    if (warp_index() == 1) return;
    sync_warp();
    if (lane_index() == 1) mbarrier_arrive(full);
  }
  sync_threads();
  for (int i = 0; i < 4; ++i) {
    if (warp_index() == 0) {
      if (i > 0 && lane_index() == 0) mbarrier_wait(empty, (i + 1) % 2);
      if (lane_index() == 0) *number = float(i);
      if (lane_index() == 0) mbarrier_arrive(full);
      if (kFault == PhaseFault::kTwice && lane_index() < 1 && i == 0) mbarrier_arrive(empty), mbarrier_arrive(empty);
    } else {
      mbarrier_wait(kFault == PhaseFault::kNotBegun ? full + 16 : full, (i + (kFault == PhaseFault::kOtherParity)) % 2);
      out[32 * i + lane_index()] = *number;
      mbarrier_arrive(empty);
    }
  }
}

template <typename... Args>
void run(const char* name, int block, int smem_bytes, void (*kernel)(Args...), Args... args) {
  const char* error = launch(kernel, Grid{1, 1}, block, smem_bytes, nullptr, args...);
  if (error != nullptr) {
    std::fprintf(stderr, "%s: %s\n", name, error);
    std::exit(1);
  }
}

// Two launches with one counter, of 4 blocks each.
template <Fault kFault>
void run_last_block(const char* name, float* out) {
  uint32_t* counter = new uint32_t(0);
  for (int launch_number = 0; launch_number < 2; ++launch_number) {
    float* parts = new float[4]{NAN, NAN, NAN, NAN};
    const char* error =
        launch(last_block_kernel<kFault>, Grid{4, 1}, 64, int(sizeof(int)), nullptr, parts, counter, out, 4);
    if (error != nullptr || *counter != 0) {
      std::fprintf(stderr, "%s: %s\n", name, error != nullptr ? error : "the counter is not 0 again");
      std::exit(1);
    }
    delete[] parts;
  }
  delete counter;
}

// Places for launches of streams 7, 9 and 7, captures from 7 and 7, streams 9 and 11, and where none is left 13 and 7.
void print_places() {
  CounterPlaces places(5);
  struct {
    int stream;
    bool is_captured;
  } launches[] = {{7, false}, {9, false},  {7, false},  {7, true}, {7, true},
                  {9, false}, {11, false}, {13, false}, {7, false}};
  for (const auto& one : launches) std::printf("%d ", places.take(uint64_t(one.stream), one.is_captured));
}

void print_conversions() {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const bf16 b{uint16_t(bits)};
    const fp16 h{uint16_t(bits)};
    std::printf("%u %u %u %u\n", bit_cast<uint32_t>(to_float(b)), bit_cast<uint32_t>(to_float(h)),
                unsigned(from_float<bf16>(bit_cast<float>(uint32_t(bits) * 65537u)).bits),
                unsigned(from_float<fp16>(bit_cast<float>(0x30000000u + uint32_t(bits) * 12289u)).bits));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string name = argv[1];
  emulation::set_seed(std::strtoull(argv[2], nullptr, 10));
  if (name == "conversions") return print_conversions(), 0;
  if (name == "places") return print_places(), 0;

  constexpr int kOut = 128;
  float* in = new float[512];
  float* out = new float[kOut];
  for (int i = 0; i < 512; ++i) in[i] = float(i % 13 - 6) + 0.25f * float(i % 3);
  for (int i = 0; i < kOut; ++i) out[i] = -1.0f;
  const int two_warps = 2 * int(sizeof(float));
  if (name == "sum") run(argv[1], 64, two_warps, block_sum_kernel<true>, out, 0);
  if (name == "out_of_bounds") run(argv[1], 64, two_warps, block_sum_kernel<true>, out, 1);
  if (name == "missing_barrier") run(argv[1], 64, two_warps, block_sum_kernel<false>, out, 0);
  if (name == "divergent_shuffle") run(argv[1], 32, 0, divergent_shuffle_kernel, out);
  if (name == "partial_barrier") run(argv[1], 64, 0, partial_barrier_kernel, out);
  const float* a = in;
  if (name == "copy") run(argv[1], 64, 1024, async_copy_kernel<true, 4>, a, out);
  if (name == "spread_copy") run(argv[1], 64, 2048, async_copy_kernel<true, 8>, a, out);
  if (name == "missing_wait") run(argv[1], 64, 1024, async_copy_kernel<false, 4>, a, out);
  const float* b = in + 256;
  if (name == "matmul") run(argv[1], 32, 768, matmul_kernel<false>, a, b, out);
  if (name == "matmul_trans") run(argv[1], 32, 768, matmul_kernel<true>, a, b, out);
  if (name == "last_block") run_last_block<Fault::kNone>(argv[1], out);
  if (name == "turn_before_part") run_last_block<Fault::kTurnBeforePart>(argv[1], out);
  if (name == "no_barrier_before_flag") run_last_block<Fault::kNoBarrier>(argv[1], out);
  constexpr int kTiles = 2 * 64 * 128;
  const auto warpgroup = [&](const char* fault, auto kernel) {
    if (name == fault) run(argv[1], name == "half_a_warpgroup" ? 64 : 128, kTiles, kernel, a, out);
  };
  warpgroup("warpgroup_abt", warpgroup_kernel<ProductFault::kNone, false>);
  warpgroup("warpgroup_ab", warpgroup_kernel<ProductFault::kNone, true>);
  warpgroup("early_sums", warpgroup_kernel<ProductFault::kEarlySums, false>);
  warpgroup("early_a", warpgroup_kernel<ProductFault::kEarlyA, true>);
  warpgroup("overwritten", warpgroup_kernel<ProductFault::kOverwritten, false>);
  warpgroup("overwritten_by_copy", warpgroup_kernel<ProductFault::kOverwrittenByCopy, false>);
  warpgroup("no_proxy_fence", warpgroup_kernel<ProductFault::kNoProxyFence, false>);
  warpgroup("fence_before_the_copy", warpgroup_kernel<ProductFault::kFenceBeforeTheCopy, false>);
  warpgroup("no_group_fence", warpgroup_kernel<ProductFault::kNoGroupFence, false>);
  warpgroup("no_wait", warpgroup_kernel<ProductFault::kNoWait, false>);
  warpgroup("beyond_memory", warpgroup_kernel<ProductFault::kBeyondMemory, false>);
  warpgroup("misaligned", warpgroup_kernel<ProductFault::kMisaligned, false>);
  warpgroup("other_swizzle", warpgroup_kernel<ProductFault::kOtherSwizzle, false>);
  warpgroup("half_a_warpgroup", warpgroup_kernel<ProductFault::kHalfAWarpgroup, false>);
  warpgroup("other_operands", warpgroup_kernel<ProductFault::kOtherOperands, false>);
  const auto transposed = [&](const char* fault, auto kernel) {
    if (name == "transposed_" + std::string(fault)) run(argv[1], 128, 32 * 128, kernel, a, out);
  };
#define LGFAST_TRANSPOSED(fault, kind) transposed(fault, transposed_kernel<ProductFault::kind>)
  LGFAST_TRANSPOSED("right", kNone);
  LGFAST_TRANSPOSED("early_sums", kEarlySums);
  LGFAST_TRANSPOSED("overwritten", kOverwritten);
  LGFAST_TRANSPOSED("no_proxy_fence", kNoProxyFence);
  LGFAST_TRANSPOSED("no_group_fence", kNoGroupFence);
  LGFAST_TRANSPOSED("no_wait", kNoWait);
  LGFAST_TRANSPOSED("beyond_memory", kBeyondMemory);
  LGFAST_TRANSPOSED("misaligned", kMisaligned);
  LGFAST_TRANSPOSED("beyond_the_row", kBeyondTheRow);
  LGFAST_TRANSPOSED("other_swizzle", kOtherSwizzle);
  LGFAST_TRANSPOSED("other_operands", kOtherOperands);
  if (name == "registers") run(argv[1], 640, 0, registers_kernel<120>, out);
  if (name == "too_many_registers") run(argv[1], 640, 0, registers_kernel<128>, out);
  const auto stored_matrix = [&](const char* fault, auto kernel) {
    if (name == fault) run(argv[1], 128, 24 * 128, kernel, a, out);
  };
  stored_matrix("stmatrix", stored_matrix_kernel<ProductFault::kNone, false>);
  stored_matrix("stmatrix_trans", stored_matrix_kernel<ProductFault::kNone, true>);
  stored_matrix("no_fence_after_matrix", stored_matrix_kernel<ProductFault::kNoFenceAfterMatrix, false>);
  stored_matrix("overwritten_by_matrix", stored_matrix_kernel<ProductFault::kOverwrittenByMatrix, false>);
  if (name == "stmatrix_x2") run(argv[1], 32, 256, store_two_matrices_kernel, a, out);
  if (name == "named_barrier") run(argv[1], 64, 4, named_barrier_kernel<true>, out);
  if (name == "other_count") run(argv[1], 64, 4, named_barrier_kernel<false>, out);
  if (name == "phases") run(argv[1], 64, 64, phase_barrier_kernel<PhaseFault::kNone>, out);
  if (name == "no_sync_after_init") run(argv[1], 64, 64, phase_barrier_kernel<PhaseFault::kNoSync>, out);
  if (name == "arrives_twice") run(argv[1], 64, 64, phase_barrier_kernel<PhaseFault::kTwice>, out);
  if (name == "too_few_arrive") run(argv[1], 64, 64, phase_barrier_kernel<PhaseFault::kOtherCount>, out);
  if (name == "not_begun") run(argv[1], 64, 64, phase_barrier_kernel<PhaseFault::kNotBegun>, out);
  if (name == "other_parity") run(argv[1], 64, 64, phase_barrier_kernel<PhaseFault::kOtherParity>, out);
  if (name == "bad_block") run(argv[1], 33, 0, divergent_shuffle_kernel, out);
  for (int i = 0; i < kOut; ++i) std::printf("%.9g\n", double(out[i]));
  std::printf("%d %d\n", int(emulation::bank_conflicts().ldmatrix), int(emulation::bank_conflicts().copies));
  delete[] in;
  delete[] out;
  return 0;
}
