// Functions compiled once more for wider vectors; the processor at hand decides at load time, so the binary stays
// portable. What they call in their loops must be LGFAST_INLINE, or stays compiled for any x86-64.
//
// LGFAST_CLONES        any x86-64, AVX2 with FMA, AVX-512; sums may differ in the last bit between machines with and
//                      without FMA
// LGFAST_EXACT_CLONES  any x86-64 and AVX2; the same bits everywhere in files compiled with -ffp-contract=off
#pragma once

// Levels, not processors' names: GCC picks a clone for "arch=haswell" on that processor alone. GCC 11 and older know no
// levels; AVX2 is then used without FMA. The choice at load time is glibc's.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define LGFAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define LGFAST_EXACT_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define LGFAST_CLONES __attribute__((target_clones("avx2", "default")))
#define LGFAST_EXACT_CLONES LGFAST_CLONES
#endif
#else
#define LGFAST_CLONES
#define LGFAST_EXACT_CLONES
#endif
#define LGFAST_ALWAYS_INLINE __attribute__((always_inline))
#define LGFAST_INLINE LGFAST_ALWAYS_INLINE inline
