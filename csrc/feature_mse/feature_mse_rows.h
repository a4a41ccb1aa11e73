// Inner loops of the CPU kernel: rows of a map with channels contiguous, in the accumulation type.
#pragma once

#include "common/accumulate.h"
#include "common/vectorize.h"
#include "feature_mse/bilinear.h"

namespace lgfast {

constexpr int kLanes = 8;  // independent sums: an AVX register of float

// out[x] = columns of `in` at tap x: [w, C] to [out_w, C].
template <typename Acc>
void expand_columns(const Acc* __restrict__ in, Acc* __restrict__ out, const Tap<Acc>* taps, int out_w, int channels) {
  for (int x = 0; x < out_w; ++x, out += channels) {
    const Acc* low = in + taps[x].low * channels;
    const Acc* high = in + taps[x].high * channels;
    const Acc weight = taps[x].weight;
    for (int c = 0; c < channels; ++c) out[c] = low[c] * (Acc(1) - weight) + high[c] * weight;
  }
}

// The transpose of expand_columns, times scale: [in_w, C] to [w, C]. Each value is gathered from the columns it went
// into.
template <typename T, typename Acc>
void reduce_columns(const Acc* __restrict__ in, T* __restrict__ out, const Tap<Acc>* taps, int in_w, int w,
                    int channels, Acc scale) {
  for (int column = 0; column < w; ++column, out += channels) {
    const TapRange xs = tap_range(column, w, in_w);
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      Acc sums[kLanes] = {};
      for (int x = xs.begin; x < xs.end; ++x) {
        const Acc weight = tap_weight(taps[x], column);
        for (int lane = 0; lane < kLanes; ++lane) sums[lane] += in[x * channels + c + lane] * weight;
      }
      for (int lane = 0; lane < kLanes; ++lane) out[c + lane] = Accumulate<T>::store(sums[lane] * scale);
    }
    for (; c < channels; ++c) {
      Acc sum = 0;
      for (int x = xs.begin; x < xs.end; ++x) sum += in[x * channels + c] * tap_weight(taps[x], column);
      out[c] = Accumulate<T>::store(sum * scale);
    }
  }
}

// Two rows of a map and the weight of the second: one row of the grid.
template <typename Acc>
struct BlendedRow {
  const Acc* low;
  const Acc* high;
  Acc weight;
};

// kCount values of a grid row from position i on: squares of (student - teacher) are added to sums, the differences to
// the gradient rows of the two student rows they were read from. kBlend...: weight is not 0.
template <int kCount, bool kBlendStudent, bool kBlendTeacher, bool kGrad, typename Acc>
LGFAST_INLINE void compare_values(const BlendedRow<Acc>& student, const BlendedRow<Acc>& teacher, Acc* grad_low,
                                  Acc* grad_high, int i, Acc* sums) {
  const Acc ws = student.weight, wt = teacher.weight;
  Acc d[kCount];
  for (int l = 0; l < kCount; ++l)
    d[l] = kBlendStudent ? student.low[i + l] * (Acc(1) - ws) + student.high[i + l] * ws : student.low[i + l];
  for (int l = 0; l < kCount; ++l)
    d[l] -= kBlendTeacher ? teacher.low[i + l] * (Acc(1) - wt) + teacher.high[i + l] * wt : teacher.low[i + l];
  for (int l = 0; l < kCount; ++l) sums[l] += d[l] * d[l];
  if (!kGrad) return;
  for (int l = 0; l < kCount; ++l) grad_low[i + l] += kBlendStudent ? d[l] * (Acc(1) - ws) : d[l];
  for (int l = 0; kBlendStudent && l < kCount; ++l) grad_high[i + l] += d[l] * ws;
}

// compare_values over n values; returns the sum of squares.
template <bool kBlendStudent, bool kBlendTeacher, bool kGrad, typename Acc>
double compare_rows(BlendedRow<Acc> student, BlendedRow<Acc> teacher, Acc* grad_low, Acc* grad_high, int n) {
  Acc sums[kLanes] = {}, tail = 0;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    compare_values<kLanes, kBlendStudent, kBlendTeacher, kGrad>(student, teacher, grad_low, grad_high, i, sums);
  for (; i < n; ++i)
    compare_values<1, kBlendStudent, kBlendTeacher, kGrad>(student, teacher, grad_low, grad_high, i, &tail);
  double sum = tail;
  for (Acc lane : sums) sum += lane;
  return sum;
}

}  // namespace lgfast
