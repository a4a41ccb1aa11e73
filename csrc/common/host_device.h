// Macros and helpers for functions that run on host and device.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define LGFAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LGFAST_HOST_DEVICE inline
#endif
#define LGFAST_ALWAYS_INLINE __attribute__((always_inline))
#define LGFAST_INLINE LGFAST_ALWAYS_INLINE inline

namespace lgfast {

// The value whose bits are those of `from`.
template <typename To, typename From>
LGFAST_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

LGFAST_HOST_DEVICE int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

}  // namespace lgfast
