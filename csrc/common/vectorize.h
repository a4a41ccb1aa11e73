// Compiles a function, together with all that it calls, for each instruction level up to AVX-512 (cpu_level.h).
// `at_level<function>(arguments)` runs the version for the level in use; `at_level<function, wide>` runs `wide` with
// AVX-512.
//
// Sums may differ in the last bit between levels with and without FMA. Files compiled with -ffp-contract=off give the
// same bits at every level.
#pragma once

#include "common/cpu_level.h"

namespace lgfast {

#if defined(LGFAST_CPU_LEVELS)
template <auto kFunction, typename... Args>
LGFAST_TARGET_V3 __attribute__((flatten)) auto at_v3(Args... args) {
  return kFunction(args...);
}

template <auto kFunction, typename... Args>
LGFAST_TARGET_V4 __attribute__((flatten)) auto at_v4(Args... args) {
  return kFunction(args...);
}
#endif

template <auto kFunction, typename... Args>
__attribute__((flatten)) auto at_default(Args... args) {
  return kFunction(args...);
}

template <auto kFunction, auto kWide = kFunction, typename... Args>
auto at_level(Args... args) {
#if defined(LGFAST_CPU_LEVELS)
  if (cpu_level() >= CpuLevel::kV4) return at_v4<kWide>(args...);
  if (cpu_level() == CpuLevel::kV3) return at_v3<kFunction>(args...);
#endif
  return at_default<kFunction>(args...);
}

}  // namespace lgfast
