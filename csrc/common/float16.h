// 16-bit floating-point storage types for host and device, without CUDA's headers.
//
// A value is stored as its bits; arithmetic is done in float32. Conversions round to nearest even.
// On a GPU the hardware converts; its NaN has other bits than the host's. GPUs before sm_80 convert neither to bfloat16
// nor pairs of values; there, kernels convert as the host does.
#pragma once

#include "common/host_device.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define LGFAST_CONVERTS_BF16
#endif

namespace lgfast {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

LGFAST_HOST_DEVICE float to_float(float value) { return value; }

LGFAST_HOST_DEVICE float to_float(bf16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }

LGFAST_HOST_DEVICE float to_float(fp16 value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));  // infinity, NaN
  // Multiplying by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals, exactly.
  const float scaled = bit_cast<float>(magnitude << 13) * bit_cast<float>(0x77800000u);
  return bit_cast<float>(sign | bit_cast<uint32_t>(scaled));
#endif
}

template <typename T>
LGFAST_HOST_DEVICE T from_float(float value);

template <>
LGFAST_HOST_DEVICE float from_float<float>(float value) {
  return value;
}

template <>
LGFAST_HOST_DEVICE bf16 from_float<bf16>(float value) {
#if defined(LGFAST_CONVERTS_BF16)
  bf16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t given = bit_cast<uint32_t>(value);
  const uint32_t bits = (given & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : given;  // NaN as PyTorch writes it
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}

template <>
LGFAST_HOST_DEVICE fp16 from_float<fp16>(float value) {
#if defined(__CUDA_ARCH__)
  fp16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};   // NaN
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    return {uint16_t(sign | (bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {uint16_t(sign | ((rounded - 0x38000000u) >> 13))};
#endif
}

// Two values in one register, `low` in the lower half: the order of mma fragments and of memory.
template <typename T>
LGFAST_HOST_DEVICE uint32_t pack2(float low, float high) {
  return uint32_t(from_float<T>(low).bits) | (uint32_t(from_float<T>(high).bits) << 16);
}

#if defined(LGFAST_CONVERTS_BF16)
template <>
LGFAST_HOST_DEVICE uint32_t pack2<bf16>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

template <>
LGFAST_HOST_DEVICE uint32_t pack2<fp16>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
#endif

template <typename T>
LGFAST_HOST_DEVICE float unpack_low(uint32_t pair) {
  return to_float(T{uint16_t(pair & 0xffffu)});
}

template <typename T>
LGFAST_HOST_DEVICE float unpack_high(uint32_t pair) {
  return to_float(T{uint16_t(pair >> 16)});
}
// Masks the upper half in place, one instruction. The general form would shift it down and up again.
template <>
LGFAST_HOST_DEVICE float unpack_high<bf16>(uint32_t pair) {
  return bit_cast<float>(pair & 0xffff0000u);
}

}  // namespace lgfast
