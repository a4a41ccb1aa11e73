// Inner loops of the CPU kernel: rows of a map with channels contiguous, in the accumulation type.
#pragma once

#include "common/vectorize.h"
#include "feature_mse/bilinear.h"

namespace lgfast {

constexpr int kLanes = 16;  // independent sums: two AVX registers of float

// out[x] = columns of `in` at tap x: [w, C] to [out_w, C].
template <typename Acc>
LGFAST_CLONES void expand_columns(const Acc* __restrict__ in, Acc* __restrict__ out, const Tap<Acc>* taps, int out_w,
                                  int channels) {
  for (int x = 0; x < out_w; ++x, out += channels) {
    const Acc* low = in + taps[x].low * channels;
    const Acc* high = in + taps[x].high * channels;
    const Acc weight = taps[x].weight;
    for (int c = 0; c < channels; ++c) out[c] = low[c] * (Acc(1) - weight) + high[c] * weight;
  }
}

// The transpose of expand_columns: [in_w, C] added up into [w, C], which starts at 0.
template <typename Acc>
LGFAST_CLONES void reduce_columns(const Acc* __restrict__ in, Acc* __restrict__ out, const Tap<Acc>* taps, int in_w,
                                  int channels) {
  for (int x = 0; x < in_w; ++x, in += channels) {
    Acc* low = out + taps[x].low * channels;
    Acc* high = out + taps[x].high * channels;
    const Acc weight = taps[x].weight;
    for (int c = 0; c < channels; ++c) low[c] += in[c] * (Acc(1) - weight);
    for (int c = 0; c < channels; ++c) high[c] += in[c] * weight;
  }
}

// Two rows of a map and the weight of the second: one row of the grid.
template <typename Acc>
struct BlendedRow {
  const Acc* low;
  const Acc* high;
  Acc weight;
};

// Squares of (student - teacher) over n values of a grid row, added up; the differences go into the gradient rows of
// the two student rows they were read from. kBlend...: weight is not 0. kGrad: gradient rows are wanted.
template <bool kBlendStudent, bool kBlendTeacher, bool kGrad, typename Acc>
LGFAST_CLONES double compare_rows(BlendedRow<Acc> student, BlendedRow<Acc> teacher, Acc* __restrict__ grad_low,
                                  Acc* __restrict__ grad_high, int n) {
  const Acc ws = student.weight, wt = teacher.weight;
  const auto value = [&](int i) {
    Acc d = kBlendStudent ? student.low[i] * (Acc(1) - ws) + student.high[i] * ws : student.low[i];
    d -= kBlendTeacher ? teacher.low[i] * (Acc(1) - wt) + teacher.high[i] * wt : teacher.low[i];
    if (kGrad) grad_low[i] += kBlendStudent ? d * (Acc(1) - ws) : d;
    if (kGrad && kBlendStudent) grad_high[i] += d * ws;
    return d * d;
  };
  Acc sums[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += value(i + lane);
  double sum = 0;
  for (; i < n; ++i) sum += value(i);
  for (Acc lane : sums) sum += lane;
  return sum;
}

}  // namespace lgfast
