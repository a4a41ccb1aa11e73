// The backward pass of vit_block, a wave of samples after the other.
//
// In a wave the threads take samples for the gradients of the input, then columns of the parameters for theirs. A
// parameter's gradient sums the tokens in their order, wave after wave, so the size of a wave, and with it the number
// of threads, changes no bit. What backward needs of cheap results (norms, GELU) it computes again.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "vit_block/vit_block_fwd.h"

namespace lgfast {

template <typename T>
struct BlockBwdParams {
  BlockShape shape;
  const T *dout, *x;
  BlockKept<const T, const float> kept;
  const T* parameters[kNumBlockParameters];  // biases of projections are not read
  const T* panels[kNumBlockProjections];     // of the weights
  T* dx;
  T* gradients[kNumBlockParameters];  // zeroed
};

// What the samples of a wave leave for the gradients of the parameters. Rows are padded, so that the same column of
// several rows falls into several sets of the first-level cache.
template <typename T>
struct Wave {
  static constexpr int kPadding = 16;
  Rows<T> activated, dhidden, normed2, dnormed2, dmiddle, dmixed, dqkv, normed1, dnormed1;
  RowStatistics<T>*statistics1, *statistics2;

  static int64_t size(const BlockShape& s, int rows) {
    return int64_t(rows) * (2 * s.hidden + 9 * s.width + 9 * kPadding + 4);
  }

  Wave(T* room, const BlockShape& s, int rows) {
    const auto take = [&](int columns) {
      const Rows<T> taken{room, columns};
      room += int64_t(rows) * columns;
      return taken;
    };
    for (Rows<T>* one : {&activated, &dhidden}) *one = take(s.hidden + kPadding);
    for (Rows<T>* one : {&normed2, &dnormed2, &dmiddle, &dmixed, &normed1, &dnormed1}) *one = take(s.width + kPadding);
    dqkv = take(3 * s.width + kPadding);
    for (RowStatistics<T>** one : {&statistics1, &statistics2})
      *one = reinterpret_cast<RowStatistics<T>*>(take(2).data);
  }
};

template <typename T>
class BlockBackward {
 public:
  // room: Wave<T>::size elements for the rows of wave_samples.
  BlockBackward(const BlockBwdParams<T>& params, T* room, int wave_samples)
      : p_(params), s_(params.shape), wave_(room, s_, wave_samples * s_.tokens) {}

  // Takes the samples [first, first + samples), no more than a wave.
  void operator()(int first, int samples) {
    torch::stable::parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
      if (begin < end) input_gradients(first, int(begin), int(end));
    });
    parameter_gradients(int64_t(first) * s_.tokens, samples * s_.tokens);
  }

 private:
  static Rows<const T> rows_at(const T* data, int columns, int64_t row) { return {data + row * columns, columns}; }

  void input_gradients(int first, int begin, int end) {
    const int rows = (end - begin) * s_.tokens, here = begin * s_.tokens, width = s_.width, hidden = s_.hidden;
    const int64_t at = int64_t(first) * s_.tokens + here;
    const Rows<const T> dout = rows_at(p_.dout, width, at), x = rows_at(p_.x, width, at);
    const Rows<const T> middle = rows_at(p_.kept.middle, width, at);
    const Rows<T> dhidden = wave_.dhidden.from(here), dnormed2 = wave_.dnormed2.from(here);
    const Rows<T> dmiddle = wave_.dmiddle.from(here), dnormed1 = wave_.dnormed1.from(here);
    project_back(dout, kFc2, rows, dhidden);
    at_level<gelu_gradient_rows<T>>(rows_at(p_.kept.hidden, hidden, at), rows, hidden, wave_.activated.from(here),
                                    dhidden);
    project_back(dhidden, kFc1, rows, dnormed2);
    norm_back(middle, kNorm2Weight, s_.eps2, dnormed2, dout, rows, wave_.normed2.from(here), wave_.statistics2 + here,
              dmiddle);
    project_back(dmiddle, kProj, rows, wave_.dmixed.from(here));
    attend_back(first, begin, end);
    project_back(wave_.dqkv.from(here), kQkv, rows, dnormed1);
    norm_back(x, kNorm1Weight, s_.eps1, dnormed1, dmiddle, rows, wave_.normed1.from(here), wave_.statistics1 + here,
              {p_.dx + at * width, width});
  }

  void project_back(Rows<const T> d, int which, int rows, Rows<T> to) {
    const ProjectionSize size = s_.projection(which);
    panel_product<T>(d, p_.panels[which], rows, size.outputs, size.inputs, to);
  }

  // Computes LayerNorm(x) again, and dx = dresidual + its gradient.
  void norm_back(Rows<const T> x, int weight, double eps, Rows<const T> dnormed, Rows<const T> dresidual, int rows,
                 Rows<T> normed, RowStatistics<T>* statistics, Rows<T> dx) {
    const T *scale = p_.parameters[weight], *bias = p_.parameters[weight + 1];
    at_level<norm_rows<T>>(x, scale, bias, rows, s_.width, T(eps), normed, statistics);
    at_level<norm_gradient_rows<T>>(dnormed, x, statistics, scale, dresidual, rows, s_.width, dx);
  }

  void attend_back(int first, int begin, int end) {
    const int64_t at = int64_t(first) * s_.tokens;
    const Rows<const T> qkv = rows_at(p_.kept.qkv, 3 * s_.width, at);
    ShortAttentionBwdParams a{};
    a.q = heads_in(qkv, s_, 0), a.k = heads_in(qkv, s_, 1), a.v = heads_in(qkv, s_, 2);
    a.out = heads_in(rows_at(p_.kept.mixed, s_.width, at), s_);
    a.dout = heads_in<T>(wave_.dmixed, s_);
    a.dq = heads_out(wave_.dqkv, s_, 0), a.dk = heads_out(wave_.dqkv, s_, 1), a.dv = heads_out(wave_.dqkv, s_, 2);
    a.lse = p_.kept.lse + int64_t(first) * s_.heads * s_.tokens;
    a.batch = end, a.heads = s_.heads, a.num_queries = a.num_keys = s_.tokens;
    a.softmax_scale = softmax_scale(s_);
    Backward<T> pass(a, s_.head_dim());
    for (int sample = begin; sample < end; ++sample)
      for (int head = 0; head < s_.heads; ++head) pass(sample, head);
  }

  // The parameters' share of the rows from `at` on. A unit of work is a panel of a weight's columns, a bias, or a norm.
  void parameter_gradients(int64_t at, int rows) {
    const int width = s_.width, hidden = s_.hidden;
    const Rows<const T> outputs[] = {wave_.dqkv, wave_.dmiddle, wave_.dhidden, rows_at(p_.dout, width, at)};
    const Rows<const T> inputs[] = {wave_.normed1, rows_at(p_.kept.mixed, width, at), wave_.normed2, wave_.activated};
    const int width_panels = ceil_div(width, kPanelColumns), hidden_panels = ceil_div(hidden, kPanelColumns);
    const int weight_units = 3 * width_panels + hidden_panels;
    torch::stable::parallel_for(0, weight_units + kNumBlockProjections + 2, 1, [&](int64_t begin, int64_t end) {
      for (int unit = int(begin); unit < end; ++unit) {
        const int which = std::min(unit / width_panels, int(kFc2)), column = (unit - which * width_panels);
        if (unit < weight_units)
          weight_gradient(outputs[which], inputs[which], which, column * kPanelColumns, rows);
        else if (unit < weight_units + kNumBlockProjections)
          bias_gradient(outputs[unit - weight_units], unit - weight_units, rows);
        else if (unit == weight_units + kNumBlockProjections)
          norm_gradient(wave_.dnormed1, rows_at(p_.x, width, at), wave_.statistics1, kNorm1Weight, rows);
        else
          norm_gradient(wave_.dnormed2, rows_at(p_.kept.middle, width, at), wave_.statistics2, kNorm2Weight, rows);
      }
    });
  }

  void weight_gradient(Rows<const T> d, Rows<const T> input, int which, int column, int rows) {
    const ProjectionSize size = s_.projection(which);
    const int columns = std::min(kPanelColumns, size.inputs - column);
    T* to = p_.gradients[kWeightOf[which]] + column;
    matmul_at_level<T>({d.data, 1, d.stride}, input.data + column, input.stride, size.outputs, rows, columns, to,
                       size.inputs, {to, size.inputs});
  }

  void bias_gradient(Rows<const T> d, int which, int rows) {
    at_level<add_to_sums<T>>(d, rows, s_.projection(which).outputs, p_.gradients[kWeightOf[which] + 1]);
  }

  void norm_gradient(Rows<const T> d, Rows<const T> x, const RowStatistics<T>* statistics, int weight, int rows) {
    at_level<add_norm_parameter_gradients<T>>(d, x, statistics, rows, s_.width, p_.gradients[weight],
                                              p_.gradients[weight + 1]);
  }

  const BlockBwdParams<T>& p_;
  const BlockShape& s_;
  const Wave<T> wave_;
};

}  // namespace lgfast
