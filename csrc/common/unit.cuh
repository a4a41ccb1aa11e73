// A unit is eight neighbouring channels. A thread moves it in 16-byte accesses and computes on it in float32.
#pragma once

#include "common/device.cuh"

namespace lgfast {

constexpr int kUnit = 8;

template <typename T>
__device__ __forceinline__ void load_unit(const T* __restrict__ from,  // 16-byte aligned
                                          float* to) {
  constexpr int kWords = kUnit * static_cast<int>(sizeof(T)) / static_cast<int>(sizeof(Vector16));
  Vector16 words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const Vector16*>(from)[i];
  T values[kUnit];
  memcpy(values, words, sizeof(values));
#pragma unroll
  for (int i = 0; i < kUnit; ++i) to[i] = to_float(values[i]);
}

template <typename T>
__device__ __forceinline__ void store_unit(T* __restrict__ to, const float* from) {
  constexpr int kWords = kUnit * static_cast<int>(sizeof(T)) / static_cast<int>(sizeof(Vector16));
  Vector16 words[kWords];
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < kUnit / 2; ++i) words[0].words[i] = pack2<T>(from[2 * i], from[2 * i + 1]);
  } else {
    memcpy(words, from, sizeof(words));
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) reinterpret_cast<Vector16*>(to)[i] = words[i];
}

}  // namespace lgfast
