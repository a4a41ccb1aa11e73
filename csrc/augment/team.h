// How the algorithm of augment_image.h is written for one CPU thread and for one CUDA block: against a Team.
//
// A Team has
//   kStrip             neighbouring pixels of a row that are one item of work: a SIMD loop, or one 4-byte access
//   Read<Strip>        how a strip is read: copied, or in place
//   kSplitsChannels    whether the three channels of a strip are items of their own; else an item shares what they
//   share kHeldRows          rows of a strip that a thread makes from source rows that it keeps; 0: none kAffinePixels
//   neighbouring pixels whose source points are found together each(n, f)         f(i) for every item grid(rows,
//   columns, f)                               f(y, x) likewise add(counter, value), add_to_total(counter, value)    of
//   any item, or of any thread once pack(sums, strip), write(out, f)                     a strip from sums in fixed
//   point, or of results f(l)
// each, grid and add_to_total end with a barrier of the team.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define LGFAST_TEAM __device__ __forceinline__
#define LGFAST_NO_UNROLL _Pragma("unroll 1")
#else
#define LGFAST_TEAM inline
#define LGFAST_NO_UNROLL
#endif

namespace lgfast {

template <int kSize>
struct alignas(kSize) ByteStrip {
  uint8_t value[kSize];
};

// The first `count` bytes, or all if there are fewer.
template <int kSize>
LGFAST_TEAM void copy_first(const uint8_t (&bytes)[kSize], int count, uint8_t* out) {
  if (count >= kSize) {
    memcpy(out, bytes, kSize);
  } else {
    for (int k = 0; k < kSize; ++k) {
      if (k < count) out[k] = bytes[k];
    }
  }
}

}  // namespace lgfast
