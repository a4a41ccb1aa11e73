// The instruction levels that CPU kernels are compiled for, and the level in use: the highest one that the processor
// has, unless hold_cpu_level of lgfast._C holds the kernels to a lower one.
#pragma once

#include <atomic>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LGFAST_CPU_LEVELS
#define LGFAST_TARGET_V3 __attribute__((target("avx2,fma,bmi,bmi2")))
#define LGFAST_TARGET_V4 \
  __attribute__((target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512")))
#define LGFAST_TARGET_BF16 \
  __attribute__((          \
      target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")))
#endif

namespace lgfast {

// Each level includes the levels before it. In order: any x86-64, AVX2 with FMA, AVX-512, products of bfloat16.
enum class CpuLevel { kDefault, kV3, kV4, kBf16 };
constexpr const char* kCpuLevelNames[] = {"default", "x86-64-v3", "x86-64-v4", "avx512_bf16"};

inline CpuLevel highest_cpu_level() {
#if defined(LGFAST_CPU_LEVELS)
  __builtin_cpu_init();
  const bool has_v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool has_v4 = has_v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (has_v4 && __builtin_cpu_supports("avx512bf16")) return CpuLevel::kBf16;
  if (has_v4) return CpuLevel::kV4;
  if (has_v3) return CpuLevel::kV3;
#endif
  return CpuLevel::kDefault;
}

inline std::atomic<CpuLevel> held_cpu_level{highest_cpu_level()};

inline CpuLevel cpu_level() { return held_cpu_level.load(std::memory_order_relaxed); }

}  // namespace lgfast
