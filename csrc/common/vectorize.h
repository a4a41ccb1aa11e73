// LGFAST_CLONES before a function compiles it twice, for any x86-64 and for AVX2 with FMA; the processor at hand
// decides at load time. The binary stays portable; sums may differ in the last bit between the two kinds of machine.
// What it calls in its loops must be LGFAST_INLINE, or stays compiled for any x86-64.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LGFAST_CLONES __attribute__((target_clones("arch=haswell", "default")))
#else
#define LGFAST_CLONES
#endif
#define LGFAST_INLINE __attribute__((always_inline)) inline
