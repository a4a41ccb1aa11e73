// Whether products of bfloat16 use the instructions of AVX512_BF16 (bf16_matmul.h), or are products of float.
#pragma once

#include <atomic>

// Compiled by GCC for x86-64 on Linux, as vectorize.h; a function that uses the instructions is LGFAST_BF16_TARGET.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define LGFAST_BF16_PRODUCTS
#define LGFAST_BF16_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#endif

namespace lgfast {

inline bool processor_has_bf16_products() {
#if defined(LGFAST_BF16_PRODUCTS)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Turned off by tests alone.
inline std::atomic<bool>& uses_bf16_products() {
  static std::atomic<bool> uses{processor_has_bf16_products()};
  return uses;
}

}  // namespace lgfast
