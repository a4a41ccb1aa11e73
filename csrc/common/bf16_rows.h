// Functions on rows of float and bfloat16 that accompany the products of bf16_matmul.h, with the same vectors.
#pragma once

#include "common/bf16_matmul.h"

#if defined(LGFAST_CPU_LEVELS)
namespace lgfast {

// Masks the lanes of a vector that starts at column `first`: a lane is on if its column lies before `end`.
LGFAST_TARGET_BF16 LGFAST_INLINE __mmask16 lanes_before(int end, int first) {
  return end - first < kPairLanes ? (1u << (end - first)) - 1 : 0xffffu;
}

// Returns 2^y for y <= 0, as exp2_negative does.
LGFAST_TARGET_BF16 LGFAST_INLINE __m512 exp2_vector(__m512 y) {
  constexpr float kTaylor[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 0.24022651f, 0.69314718f, 1};
  const __m512 clamped = _mm512_max_ps(_mm512_set1_ps(-200.0f), y);  // NaN where y is NaN
  const __m512 whole = _mm512_roundscale_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = clamped - whole;
  __m512 power = _mm512_set1_ps(1.5252734e-5f);
  for (float c : kTaylor) power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(c));
  return _mm512_scalef_ps(power, whole);
}

// Writes factor * from [columns], rounded to nearest even, to `to`. `from` is padded to whole vectors.
LGFAST_TARGET_BF16 inline void narrow(const float* from, int columns, float factor, bf16* to) {
  for (int c = 0; c < columns; c += kPairLanes) {
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_set1_ps(factor) * _mm512_loadu_ps(from + c));
    _mm256_mask_storeu_epi16(to + c, lanes_before(columns, c), (__m256i)rounded);
  }
}

// Rounds two rows [columns] and writes them as one row of pairs. All three are padded to whole vectors.
LGFAST_TARGET_BF16 inline void interleave(const float* first, const float* second, int columns, Pair* to) {
  for (int c = 0; c < columns; c += kPairLanes) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(first + c)));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(second + c)));
    _mm512_storeu_si512(to + c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

LGFAST_TARGET_BF16 inline float dot(const bf16* a, const bf16* b, int n) {
  __m512 sums = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 2 * kPairLanes) {
    const __mmask32 inside = n - i < 2 * kPairLanes ? (1u << (n - i)) - 1 : 0xffffffffu;
    const __m512i left = _mm512_maskz_loadu_epi16(inside, a + i), right = _mm512_maskz_loadu_epi16(inside, b + i);
    sums = _mm512_dpbf16_ps(sums, (__m512bh)left, (__m512bh)right);
  }
  return _mm512_reduce_add_ps(sums);
}

}  // namespace lgfast
#endif
