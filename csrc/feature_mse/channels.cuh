// Neighbouring channels of a pixel: 16 bytes in registers, and pieces of them in planes of shared memory.
#pragma once

#include <type_traits>

#include "common/accumulate.h"
#include "common/arithmetic.h"

namespace lgfast {

template <typename T, int kVector>
struct alignas(kVector * sizeof(T)) Channels {
  T values[kVector];
};

// The same values on their way to where they are needed, as whole words, which the compiler leaves whole until then.
template <typename T, int kVector>
using Raw = std::conditional_t<kVector == 1, Channels<T, 1>, Vector16>;

template <typename T, int kVector>
__device__ __forceinline__ Raw<T, kVector> load_raw(const T* from) {
  return *reinterpret_cast<const Raw<T, kVector>*>(from);
}

template <typename T, int kVector, typename Acc>
__device__ __forceinline__ void unpack(const Raw<T, kVector>& raw, Acc (&to)[kVector]) {
  if constexpr (kVector > 1 && sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      to[2 * i] = unpack_low<T>(raw.words[i]);
      to[2 * i + 1] = unpack_high<T>(raw.words[i]);
    }
  } else {
    Channels<T, kVector> in;
    memcpy(&in, &raw, sizeof(in));
#pragma unroll
    for (int i = 0; i < kVector; ++i) to[i] = Accumulate<T>::load(in.values[i]);
  }
}

template <typename T, int kVector, typename Acc>
__device__ __forceinline__ void load_channels(const T* __restrict__ from, Acc (&to)[kVector]) {
  unpack<T>(load_raw<T, kVector>(from), to);
}

// Returns factor times the values, rounded once.
template <typename T, int kVector, typename Acc>
__device__ __forceinline__ void store_scaled(T* to, const Acc (&values)[kVector], Acc factor) {
  Channels<T, kVector> out;
#pragma unroll
  for (int i = 0; i < kVector; ++i) out.values[i] = Accumulate<T>::store(values[i] * factor);
  *reinterpret_cast<Channels<T, kVector>*>(to) = out;
}

// Values of `kVector` channels in shared memory, in pieces of 16 bytes, each a plane of its own: threads next to one
// another meet no bank twice. A single value is a piece.
template <int kVector, typename Acc>
struct Planes {
  static constexpr int kPieces = kVector == 1 ? 1 : kVector * static_cast<int>(sizeof(Acc)) / 16;
  static constexpr int kValues = kVector / kPieces;  // of a piece
  Acc* data;
  int stride;  // values from one plane to the next

  __device__ __forceinline__ void store(int place, const Acc (&values)[kVector]) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      Acc* to = at(i, place);
      if constexpr (kVector == 1) {
        *to = values[i];
      } else {
        Vector16 words;
        memcpy(&words, values + i * kValues, sizeof(words));
        store_smem_16(smem_address(to), words);
      }
    }
  }
  __device__ __forceinline__ Acc* at(int piece, int place) const { return data + piece * stride + place * kValues; }
};

}  // namespace lgfast
