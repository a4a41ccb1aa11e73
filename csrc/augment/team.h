// How the algorithm of augment_image.h is written for one CPU thread and for one CUDA block: against a Team.
//
// A Team has:
// - kSize: side of the image where the compiler knows it, else 0. kIsShared, on a GPU: whether the image's working
//   memory is shared memory.
// - kIsWhole: whether it makes whole images. Otherwise it makes the rows of a view that it is given, and the rows of
//   the image before each operation that those are made of.
// - kStrip: how many neighbouring pixels of a row are one item of work: a SIMD loop, or one 4-byte access.
// - Read<Strip>: how a strip is read: copied, or in place.
// - kSplitsChannels: whether each channel of a strip is an item of its own. Otherwise an item is a strip of all three
//   channels, and computes once what they share.
// - kHeldRows: how many rows of a strip a thread makes from source rows that it keeps; 0: none. Where there are some,
//   an enlarged crop may become the view without a way through the planes.
// - kAffinePixels: how many neighbouring pixels have their source points computed together.
// - each(n, f) calls f(i) for every item; grid(rows, columns, f) calls f(y, x).
// - add(counter, value) adds for an item; add_to_total(counter, value) adds once for each thread.
// - pack(sums, strip) makes a strip from sums in fixed point; write(out, f) stores a strip of results f(l).
//
// each, grid and add_to_total end with a barrier of the team, which is meet(); each_ahead(n, f) is each without it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define LGFAST_TEAM __device__ __forceinline__
#define LGFAST_CALLED __device__ __noinline__
#define LGFAST_NO_UNROLL _Pragma("unroll 1")
#else
#define LGFAST_TEAM inline
#define LGFAST_CALLED inline
#define LGFAST_NO_UNROLL
#endif

namespace lgfast {

template <int kSize>
struct alignas(kSize) ByteStrip {
  uint8_t value[kSize];
};

// Copies the first `count` bytes, or all where the strip is shorter.
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
