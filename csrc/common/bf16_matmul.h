// Products of bfloat16 matrices that fit in a core's cache: c = a b, or c += a b, in float32. One thread computes a
// product, with the instructions of AVX512_BF16.
//
// An instruction multiplies two neighbours along the depth and adds both products to a sum, so both factors are read in
// pairs. A pair of a left factor is two values side by side. A right factor is stored as pairs [depth / 2][columns].
// Zeros fill up an odd depth. Subnormal values count as zero.
#pragma once

#include <cstdint>

#include "common/cpu_level.h"
#include "common/float16.h"

#if defined(LGFAST_CPU_LEVELS)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own undefined vectors
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace lgfast {

constexpr int kPairLanes = 16;  // pairs in a vector; right factors and c have a multiple of this many columns

struct Pair {
  bf16 first, second;
};

// A left factor. It is read pair by pair, so it may be stored transposed. Strides count bf16 values.
struct LeftPairs {
  const bf16* data;
  int64_t row_stride, pair_stride;
};

// Computes one tile of c [kRows, kVectors * lanes]. Its sums stay in registers.
template <int kRows, int kVectors>
LGFAST_TARGET_BF16 LGFAST_INLINE void bf16_tile(const LeftPairs a, const Pair* b, int64_t b_stride, int pairs, float* c,
                                                int64_t c_stride, bool accumulate) {
  typedef int Word __attribute__((aligned(2), may_alias));
  __m512 sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = accumulate ? _mm512_loadu_ps(c + r * c_stride + v * kPairLanes) : _mm512_setzero_ps();
  for (int k = 0; k < pairs; ++k) {
    __m512bh row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = (__m512bh)_mm512_loadu_si512(b + k * b_stride + v * kPairLanes);
    for (int r = 0; r < kRows; ++r) {
      const Word* word = reinterpret_cast<const Word*>(a.data + r * a.row_stride + k * a.pair_stride);
      const __m512bh value = (__m512bh)_mm512_set1_epi32(*word);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], value, row[v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(c + r * c_stride + v * kPairLanes, sums[r][v]);
}

// Computes the columns of c that kVectors vectors hold, one to four.
template <int kVectors>
LGFAST_TARGET_BF16 LGFAST_INLINE void bf16_panel(LeftPairs a, const Pair* b, int64_t b_stride, int rows, int pairs,
                                                 float* c, int64_t c_stride, bool accumulate) {
  constexpr int kRows = 6;  // up to 24 sums, four vectors of b and one pair of a in 32 registers
  int left = rows;
  for (; left >= kRows; left -= kRows) {
    bf16_tile<kRows, kVectors>(a, b, b_stride, pairs, c, c_stride, accumulate);
    a.data += kRows * a.row_stride;
    c += kRows * c_stride;
  }
  switch (left) {
    case 5: return bf16_tile<5, kVectors>(a, b, b_stride, pairs, c, c_stride, accumulate);
    case 4: return bf16_tile<4, kVectors>(a, b, b_stride, pairs, c, c_stride, accumulate);
    case 3: return bf16_tile<3, kVectors>(a, b, b_stride, pairs, c, c_stride, accumulate);
    case 2: return bf16_tile<2, kVectors>(a, b, b_stride, pairs, c, c_stride, accumulate);
    case 1: return bf16_tile<1, kVectors>(a, b, b_stride, pairs, c, c_stride, accumulate);
  }
}

// c [rows, columns] = (or +=) a [rows, 2 * pairs] b [2 * pairs, columns].
LGFAST_TARGET_BF16 inline void bf16_matmul(LeftPairs a, const Pair* b, int64_t b_stride, int rows, int pairs,
                                           int columns, float* c, int64_t c_stride, bool accumulate) {
  int column = 0;
  for (; column + 4 * kPairLanes <= columns; column += 4 * kPairLanes)
    bf16_panel<4>(a, b + column, b_stride, rows, pairs, c + column, c_stride, accumulate);
  switch ((columns - column) / kPairLanes) {
    case 3: return bf16_panel<3>(a, b + column, b_stride, rows, pairs, c + column, c_stride, accumulate);
    case 2: return bf16_panel<2>(a, b + column, b_stride, rows, pairs, c + column, c_stride, accumulate);
    case 1: return bf16_panel<1>(a, b + column, b_stride, rows, pairs, c + column, c_stride, accumulate);
  }
}

}  // namespace lgfast
#endif
