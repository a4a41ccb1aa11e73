// augment on the GPU: the algorithm is augment_image.h's, and a block is the team that runs it.
//
// A block makes one image after the other, its planes in shared memory (226 KB for 224 x 224: one block per
// SM) or, where that is too small, in a workspace in global memory. There several blocks may share an image. Work is
// dealt out to threads in strips of four pixels, so planes are read and written as 4-byte words. Histograms use atomics
// on shared memory; integer sums, so two runs agree bit for bit.
//
// What the compiled code depends on: parameters stay in constant memory (__grid_constant__), and the address space of
// the working memory is known, so that nothing is kept in local memory and planes are read by LDS, not by generic
// loads.
#pragma once

#include <type_traits>

#include "augment/augment_image.h"
#include "common/device.cuh"

namespace lgfast {

template <bool kInSharedMemory, int kFixedSize>
struct BlockTeam {
  static constexpr bool kIsShared = kInSharedMemory, kIsWhole = kInSharedMemory;
  static constexpr int kSize = kFixedSize;
  static constexpr int kStrip = 4;
  static constexpr bool kSplitsChannels = false;
  static constexpr int kHeldRows = 7;
  static constexpr int kAffinePixels = 1;
  template <typename Strip>
  using Read = Strip;  // one 4-byte load

  __device__ __forceinline__ void meet() const { sync_threads(); }
  template <typename F>
  __device__ __forceinline__ void each_ahead(int n, const F& f) const {
    for (int i = thread_index(); i < n; i += block_size()) f(i);
  }
  template <typename F>
  __device__ __forceinline__ void each(int n, const F& f) const {
    each_ahead(n, f);
    meet();
  }
  // Threads walk the grid row by row, block_size() items a step: two divisions a thread, none an item.
  template <typename F>
  __device__ __forceinline__ void grid(int rows, int columns, const F& f) const {
    const int step_y = block_size() / columns, step_x = block_size() % columns;
    int x = thread_index() % columns;
    for (int y = thread_index() / columns; y < rows; y += step_y) {
      f(y, x);
      x += step_x;
      if (x >= columns) {
        x -= columns;
        ++y;
      }
    }
    sync_threads();
  }
  __device__ __forceinline__ void add(uint32_t* counter, uint32_t value) const { atomic_add(counter, value); }
  // Every thread's value, once per warp.
  __device__ __forceinline__ void add_to_total(uint32_t* total, uint32_t value) const {
    for (int delta = kWarpSize / 2; delta > 0; delta /= 2) value += shfl_down(value, delta);
    if (lane_index() == 0) atomic_add(total, value);
    sync_threads();
  }
  template <typename Strip>
  __device__ __forceinline__ void pack(const int (&sum)[kStrip], Strip& strip) const {
    const uint32_t bytes =
        saturate_bytes(sum[0] >> kWeightBits, sum[1] >> kWeightBits, sum[2] >> kWeightBits, sum[3] >> kWeightBits);
    reinterpret_cast<uint32_t&>(strip) = bytes;
  }
  template <typename T, typename F>
  __device__ __forceinline__ void write(T* out, const F& value) const {
    T values[kStrip];
    for (int l = 0; l < kStrip; ++l) values[l] = value(l);
    constexpr int kNumWords = int(sizeof(values) / 4), kTogether = kNumWords % 2 == 0 ? 2 : 1;
    struct alignas(4 * kTogether) Words {
      uint32_t word[kTogether];
    };
    for (int k = 0; k < kNumWords; k += kTogether) {
      Words words;
      for (int j = 0; j < kTogether; ++j) {
        if constexpr (sizeof(T) == 2) {
          const uint32_t low = bit_cast<uint16_t>(values[2 * (k + j)]),
                         high = bit_cast<uint16_t>(values[2 * (k + j) + 1]);
          words.word[j] = low | high << 16;
        } else {
          memcpy(&words.word[j], reinterpret_cast<const char*>(values) + 4 * (k + j), 4);
        }
      }
      reinterpret_cast<Words*>(out)[k / kTogether] = words;
    }
  }
};

// kIsShared: whether an image's working memory is shared memory or part of a workspace; known to the compiler, which
// then addresses it as what it is. kSize: side of the image, or 0: any.
template <typename T, bool kIsShared, int kSize>
__global__ void __launch_bounds__(kAugmentThreads)
    augment_kernel(const __grid_constant__ AugmentParams params, const __grid_constant__ AugmentLayout layout,
                   unsigned char* workspace, unsigned char* all_moved) {
  using Team = BlockTeam<kIsShared, kSize>;
  const Team team;
  unsigned char* memory = kIsShared ? dynamic_smem() : workspace + block_index() * layout.num_bytes;
  WorkingImage<Team> image(team, params, layout, memory);
  if constexpr (Team::kIsWhole) {
    for (int64_t b = block_index(); b < params.batch; b += grid_size()) {
      augment_image<T>(image, params.parts == nullptr ? b : params.parts[1 + b].row);
    }
  } else {
    unsigned char* moved = all_moved + block_index() * moved_bytes_of(image.size, int(sizeof(T)));
    const int num_parts = params.parts->row;
    for (int k = block_index(); k < num_parts; k += grid_size()) {
      const AugmentPart taken = params.parts[1 + k];
      const Rows rows = rows_of_part(taken.part, taken.num_parts, image.size, params.teacher_size);
      augment_image<T>(image, taken.row, rows, moved);
    }
  }
}

template <typename T>
const char* launch_augment_kernel(const AugmentParams& params, const AugmentLaunch& plan, int threads, void* memory,
                                  void* stream) {
  constexpr int kUsual = 224;
  const bool is_shared = plan.smem_bytes > 0;
  const auto usual = is_shared ? augment_kernel<T, true, kUsual> : augment_kernel<T, false, kUsual>;
  const auto other = is_shared ? augment_kernel<T, true, 0> : augment_kernel<T, false, 0>;
  const auto kernel = params.image_size == kUsual ? usual : other;
  unsigned char* workspace = static_cast<unsigned char*>(memory);
  return launch(kernel, Grid{plan.blocks, 1}, threads, plan.smem_bytes, stream, params,
                augment_layout(params.image_size), workspace, workspace + plan.workspace_bytes);
}

}  // namespace lgfast
