// vit_block: its sizes and parameters. No torch types.
#pragma once

#include <cstdint>

namespace lgfast {

// The parameters, in the order of the operation's arguments. A bias follows its weight.
enum BlockParameter {
  kNorm1Weight,
  kNorm1Bias,
  kQkvWeight,
  kQkvBias,
  kProjWeight,
  kProjBias,
  kNorm2Weight,
  kNorm2Bias,
  kFc1Weight,
  kFc1Bias,
  kFc2Weight,
  kFc2Bias,
  kNumBlockParameters
};

enum BlockProjection { kQkv, kProj, kFc1, kFc2, kNumBlockProjections };
constexpr BlockParameter kWeightOf[] = {kQkvWeight, kProjWeight, kFc1Weight, kFc2Weight};

// The size of a projection's weight: [outputs, inputs].
struct ProjectionSize {
  int outputs, inputs;
};

struct BlockShape {
  int batch, tokens, width, hidden, heads;
  double eps1, eps2;  // of the norms

  int head_dim() const { return width / heads; }

  ProjectionSize projection(int which) const {
    switch (which) {
      case kQkv: return {3 * width, width};
      case kProj: return {width, width};
      case kFc1: return {hidden, width};
      default: return {width, hidden};
    }
  }

  // The number of elements of a parameter.
  int64_t size(int parameter) const {
    for (int which = 0; which < kNumBlockProjections; ++which) {
      const ProjectionSize size = projection(which);
      if (parameter == kWeightOf[which]) return int64_t(size.outputs) * size.inputs;
      if (parameter == kWeightOf[which] + 1) return size.outputs;
    }
    return width;
  }

  // Where a parameter begins among all of them, one behind the other.
  int64_t offset(int parameter) const {
    int64_t sum = 0;
    for (int i = 0; i < parameter; ++i) sum += size(i);
    return sum;
  }
};

// Both passes take this many rows (tokens) at a time, in whole samples, so that most of what they make of them stays in
// the second-level cache. The number changes no bit of the results.
constexpr int kBlockRows = 200;

inline int samples_at_a_time(int tokens) { return tokens < kBlockRows ? kBlockRows / tokens : 1; }

}  // namespace lgfast
