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
  if (name == "bad_block") run(argv[1], 33, 0, divergent_shuffle_kernel, out);
  for (int i = 0; i < kOut; ++i) std::printf("%.9g\n", double(out[i]));
  std::printf("%d %d\n", int(emulation::bank_conflicts().ldmatrix), int(emulation::bank_conflicts().copies));
  delete[] in;
  delete[] out;
  return 0;
}
