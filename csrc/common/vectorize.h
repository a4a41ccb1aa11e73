// LGFAST_CLONES before a function compiles it three times, for any x86-64, for AVX2 with FMA and for AVX-512; the
// processor at hand decides at load time. The binary stays portable; sums may differ in the last bit between machines
// with and without FMA.
// What it calls in its loops must be LGFAST_INLINE, or stays compiled for any x86-64.
#pragma once

// The level, not a processor's name: GCC picks a clone for "arch=haswell" on that processor alone. GCC 11 and older
// know no levels; AVX2 is then used without FMA.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define LGFAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LGFAST_CLONES __attribute__((target_clones("avx2", "default")))
#endif
#else
#define LGFAST_CLONES
#endif
#define LGFAST_ALWAYS_INLINE __attribute__((always_inline))
#define LGFAST_INLINE LGFAST_ALWAYS_INLINE inline
