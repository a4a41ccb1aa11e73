// The forward pass of vit_block: a few samples at a time through the whole block.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "vit_block/panels.h"
#include "vit_block/vit_block.h"
#include "vit_block/vit_block_rows.h"

namespace lgfast {

// What forward keeps for backward, beside its input, for all samples.
template <typename T, typename Lse>
struct BlockKept {
  T *qkv, *mixed, *middle, *hidden;  // [rows, 3 width], [rows, width], [rows, width], [rows, hidden]
  Lse* lse;                          // [batch, heads, tokens]
};

template <typename T>
struct BlockFwdParams {
  BlockShape shape;
  const T* x;
  const T* parameters[kNumBlockParameters];
  const T* panels[kNumBlockProjections];  // of the transposed weights
  BlockKept<T, float> kept;
  T* out;
};

inline float softmax_scale(const BlockShape& s) { return float(1 / std::sqrt(double(s.head_dim()))); }

// The heads of q, k or v (part 0, 1, 2) in rows that hold all three, or of rows that hold one.
template <typename T>
HeadsInput heads_in(Rows<const T> rows, const BlockShape& s, int part = 0) {
  return {rows.data + part * s.width, s.tokens * rows.stride, rows.stride, s.head_dim()};
}

template <typename T>
HeadsOutput heads_out(Rows<T> rows, const BlockShape& s, int part = 0) {
  return {rows.data + part * s.width, s.tokens * rows.stride, rows.stride, s.head_dim()};
}

template <typename T>
ShortAttentionFwdParams attention_of(const BlockFwdParams<T>& p) {
  const BlockShape& s = p.shape;
  const Rows<const T> qkv{p.kept.qkv, 3 * s.width};
  ShortAttentionFwdParams attention{};
  attention.q = heads_in(qkv, s, 0);
  attention.k = heads_in(qkv, s, 1);
  attention.v = heads_in(qkv, s, 2);
  attention.out = heads_out(Rows<T>{p.kept.mixed, s.width}, s);
  attention.lse = p.kept.lse;
  attention.batch = s.batch, attention.heads = s.heads;
  attention.num_queries = attention.num_keys = s.tokens;
  attention.softmax_scale = softmax_scale(s);
  return attention;
}

template <typename T>
class BlockForward {
 public:
  BlockForward(const BlockFwdParams<T>& params, const ShortAttentionFwdParams& attention, int most_rows)
      : p_(params),
        s_(params.shape),
        normed_(most_rows, s_.width, Unset{}),
        activated_(most_rows, s_.hidden, Unset{}),
        attention_(attention, s_.head_dim()) {}

  void operator()(int first, int samples) {
    const int rows = samples * s_.tokens, width = s_.width, hidden = s_.hidden;
    const auto here = [&](auto* data, int columns) {
      return Rows<std::remove_pointer_t<decltype(data)>>{data + int64_t(first) * s_.tokens * columns, columns};
    };
    const Rows<const T> x = here(p_.x, width);
    const Rows<T> qkv = here(p_.kept.qkv, 3 * width), mixed = here(p_.kept.mixed, width);
    const Rows<T> middle = here(p_.kept.middle, width), inner = here(p_.kept.hidden, hidden);
    const Rows<T> normed = normed_.rows(), activated = activated_.rows();
    norm(x, kNorm1Weight, s_.eps1, rows, normed);
    project(normed, kQkv, rows, qkv);
    for (int sample = first; sample < first + samples; ++sample)
      for (int head = 0; head < s_.heads; ++head) attention_(sample, head);
    project_onto(x, mixed, kProj, rows, middle);
    norm(middle, kNorm2Weight, s_.eps2, rows, normed);
    project(normed, kFc1, rows, inner);
    at_level<gelu_rows<T>>(inner, rows, hidden, activated);
    project_onto(middle, activated, kFc2, rows, here(p_.out, width));
  }

 private:
  void norm(Rows<const T> x, int weight, double eps, int rows, Rows<T> to) {
    at_level<norm_rows<T>>(x, p_.parameters[weight], p_.parameters[weight + 1], rows, s_.width, T(eps), to, nullptr);
  }

  void project(Rows<const T> a, int which, int rows, Rows<T> to) {
    const ProjectionSize size = s_.projection(which);
    panel_product<T>(a, p_.panels[which], rows, size.inputs, size.outputs, to,
                     {p_.parameters[kWeightOf[which] + 1], 0});
  }

  // The same, added to the residual stream.
  void project_onto(Rows<const T> residual, Rows<const T> a, int which, int rows, Rows<T> to) {
    const ProjectionSize size = s_.projection(which);
    at_level<add_bias_rows<T>>(residual, p_.parameters[kWeightOf[which] + 1], rows, s_.width, to);
    panel_product<T>(a, p_.panels[which], rows, size.inputs, size.outputs, to, {to.data, to.stride});
  }

  const BlockFwdParams<T>& p_;
  const BlockShape& s_;
  Room<T> normed_, activated_;
  Forward<T> attention_;
};

}  // namespace lgfast
