// Forward and backward of short_attention on the CPU for every element type, in float (double for double), with the
// products of small_matmul.h.
//
// The code widens and transposes a head's keys once (`turned` in names). Then it takes block after block of queries:
// scores, softmax, product with the values. Backward recomputes the softmax from the saved log-sum-exp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/accumulate.h"
#include "common/exp2.h"
#include "common/small_matmul.h"
#include "common/transpose.h"
#include "common/vectorize.h"
#include "short_attention/head_rows.h"

namespace lgfast {

constexpr int kLanes = kMatmulColumns;

template <typename T>
LeftFactor<std::remove_const_t<T>> left(Rows<T> rows) {
  return {rows.data, rows.stride, 1};
}

template <typename T>
LeftFactor<std::remove_const_t<T>> turned(Rows<T> rows) {
  return {rows.data, 1, rows.stride};
}

template <typename T, typename Acc>
void widen(Rows<const T> from, int rows, int columns, Rows<Acc> to) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) to.data[r * to.stride + c] = Accumulate<T>::load(from.data[r * from.stride + c]);
}

// Widens and transposes: [rows, columns] to [columns, rows]. Where it widens it takes a few rows at a time, whose cache
// lines then stay in the cache until all columns are read.
template <typename T, typename Acc>
void widen_turned(Rows<const T> from, int rows, int columns, Rows<Acc> to) {
  if constexpr (std::is_same_v<T, Acc>) {
    transpose(from.data, from.stride, rows, columns, to.data, to.stride);
  } else {
    constexpr int kTurned = 4;
    for (int first = 0; first < rows; first += kTurned)
      for (int c = 0; c < columns; ++c)
        for (int r = first; r < std::min(first + kTurned, rows); ++r)
          to.data[c * to.stride + r] = Accumulate<T>::load(from.data[r * from.stride + c]);
  }
}

template <typename T, typename Acc>
void narrow(Rows<Acc> from, int rows, int columns, Rows<T> to) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) to.data[r * to.stride + c] = Accumulate<T>::store(from.data[r * from.stride + c]);
}

// Whether products read and write tokens of type T in place.
template <typename T>
bool in_place(int head_dim) {
  return std::is_same_v<T, typename Accumulate<T>::type> && head_dim % kLanes == 0;
}

// Returns tokens as a product reads them: in place, or widened in `room`.
template <typename T, typename Acc>
Rows<const Acc> read(Rows<const T> from, int rows, int head_dim, Room<Acc>& room) {
  if constexpr (std::is_same_v<T, Acc>)
    if (in_place<T>(head_dim)) return from;
  at_level<widen<T, Acc>>(from, rows, head_dim, room.rows());
  return room.rows();
}

// Returns where a product writes tokens: in place, or in `room`, from where `write` copies them.
template <typename T, typename Acc>
Rows<Acc> target(Rows<T> to, int head_dim, Room<Acc>& room) {
  if constexpr (std::is_same_v<T, Acc>)
    if (in_place<T>(head_dim)) return to;
  return room.rows();
}

template <typename T, typename Acc>
void write(Rows<Acc> from, int rows, int head_dim, Rows<T> to) {
  if (!in_place<T>(head_dim)) at_level<narrow<T, Acc>>(from, rows, head_dim, to);
}

// kLanes independent parts of a row's sum or maximum, in an explicit vector: GCC 12 keeps an array of them in memory.
template <typename Acc>
using Lanes = typename Vector<Acc, kLanes * sizeof(Acc)>::type;

template <typename Acc>
LGFAST_INLINE const Lanes<Acc>& lanes_at(const Acc* row) {
  return *reinterpret_cast<const Lanes<Acc>*>(row);
}

// Combines the lanes two by two.
template <typename Acc, typename F>
LGFAST_INLINE Acc reduced(const Lanes<Acc>& parts, const F& f) {
  Acc lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = parts[i];
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = f(lanes[i], lanes[i + half]);
  return lanes[0];
}

template <typename Acc>
LGFAST_INLINE Acc total(const Lanes<Acc>& parts) {
  return reduced<Acc>(parts, [](Acc a, Acc b) { return a + b; });
}

// The loops below take a few rows at a time through each of their steps, so that a processor overlaps what is a chain
// of dependent instructions within a row.
constexpr int kRowsTogether = 8;

// Turns the scores of queries, padded to whole vectors, into softmax(scale * scores). Gives lse
// log(sum(exp(scale * scores))), unless it is null.
template <typename Acc>
void softmax(Rows<Acc> scores, int rows, int keys, int stride, Acc scale, float* lse) {
  const Acc factor = scale * Acc(kLog2E);
  for (int first = 0; first < rows; first += kRowsTogether) {
    const int count = std::min(kRowsTogether, rows - first);
    Acc max[kRowsTogether], sum[kRowsTogether];
    for (int r = 0; r < count; ++r) {
      Acc* __restrict__ row = scores.from(first + r).data;
      for (int j = keys; j < stride; ++j) row[j] = -std::numeric_limits<Acc>::infinity();
      Lanes<Acc> maxima = lanes_at(row);
      for (int j = kLanes; j < stride; j += kLanes) maxima = lanes_at(row + j) > maxima ? lanes_at(row + j) : maxima;
      max[r] = reduced<Acc>(maxima, [](Acc a, Acc b) { return a > b ? a : b; });
    }
    for (int r = 0; r < count; ++r) {
      Acc* __restrict__ row = scores.from(first + r).data;
      for (int j = 0; j < stride; ++j) row[j] = exp2_negative((row[j] - max[r]) * factor);
    }
    for (int r = 0; r < count; ++r) {
      Lanes<Acc> sums = {};
      for (int j = 0; j < stride; j += kLanes) sums += lanes_at(scores.from(first + r).data + j);
      sum[r] = total<Acc>(sums);
    }
    for (int r = 0; r < count; ++r) {
      Acc* __restrict__ row = scores.from(first + r).data;
      const Acc share = 1 / sum[r];
      for (int j = 0; j < stride; ++j) row[j] *= share;
      if (lse) lse[first + r] = float(max[r] * scale + std::log(sum[r]));
    }
  }
}

// The same from the saved log-sum-exp. That is float32, so double computes its own.
template <typename Acc>
void softmax_again(Rows<Acc> scores, int rows, int keys, int stride, Acc scale, const float* lse) {
  if constexpr (std::is_same_v<Acc, float>) {
    for (int r = 0; r < rows; ++r) {
      float* __restrict__ row = scores.from(r).data;
      const float factor = scale * float(kLog2E), offset = lse[r] * float(kLog2E);
      for (int j = 0; j < stride; ++j) row[j] = exp2_negative(row[j] * factor - offset);
    }
  } else {
    softmax<Acc>(scores, rows, keys, stride, scale, nullptr);
  }
}

template <typename Acc>
Acc dot(const Acc* __restrict__ a, const Acc* __restrict__ b, int n) {
  Lanes<Acc> sums = {};
  for (int i = 0; i < n; i += kLanes) sums += lanes_at(a + i) * lanes_at(b + i);
  return total<Acc>(sums);
}

// Turns the gradients of the probabilities into those of the scores: scale * p * (dp - dot(out, dout)).
template <typename Acc>
void score_gradients(Rows<Acc> probs, Rows<Acc> dprobs, Rows<const Acc> out, Rows<const Acc> dout, int rows, int dim,
                     int stride, Acc scale) {
  for (int first = 0; first < rows; first += kRowsTogether) {
    const int count = std::min(kRowsTogether, rows - first);
    Acc delta[kRowsTogether];
    for (int r = 0; r < count; ++r) delta[r] = dot<Acc>(out.from(first + r).data, dout.from(first + r).data, dim);
    for (int r = 0; r < count; ++r) {
      const Acc* __restrict__ p = probs.from(first + r).data;
      Acc* __restrict__ dp = dprobs.from(first + r).data;
      for (int j = 0; j < stride; ++j) dp[j] = scale * p[j] * (dp[j] - delta[r]);
    }
  }
}

// sums [columns] += the sum of the rows.
template <typename Acc>
void add_rows(Rows<Acc> from, int rows, int columns, float* __restrict__ sums) {
  std::vector<Acc> total(columns);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) total[c] += from.data[r * from.stride + c];
  for (int c = 0; c < columns; ++c) sums[c] += float(total[c]);
}

// c [rows, columns] (+)= a [rows, depth] b [depth, columns].
template <typename Acc>
void product(LeftFactor<Acc> a, Rows<const Acc> b, int rows, int depth, int columns, Rows<Acc> c, bool add = false) {
  matmul_at_level<Acc>(a, b.data, b.stride, rows, depth, columns, c.data, c.stride, {add ? c.data : nullptr, c.stride});
}

template <typename T>
struct Forward {
  using Acc = typename Accumulate<T>::type;
  const ShortAttentionFwdParams& p;
  const int dim, padded_dim, padded_keys, block_rows, copied;  // copied: 1 where tokens are not read in place
  Room<Acc> q_room, k_turned, v_room, out_room, scores;

  Forward(const ShortAttentionFwdParams& p, int head_dim)
      : p(p),
        dim(head_dim),
        padded_dim(round_up(dim, kLanes)),
        padded_keys(round_up(p.num_keys, kLanes)),
        block_rows(queries_of_block(p.num_queries, p.num_keys)),
        copied(in_place<T>(dim) ? 0 : 1),
        q_room(copied * block_rows, dim),
        k_turned(dim, p.num_keys),
        v_room(copied * p.num_keys, dim),
        out_room(copied * block_rows, dim),
        scores(block_rows, p.num_keys, Unset{}) {}

  void operator()(int batch, int head) {
    at_level<widen_turned<T, Acc>>(head_rows<T>(p.k, batch, head), p.num_keys, dim, k_turned.rows());
    const Rows<const Acc> v = read<T, Acc>(head_rows<T>(p.v, batch, head), p.num_keys, dim, v_room);
    for (int first = 0; first < p.num_queries; first += block_rows)
      block(batch, head, v, first, std::min(block_rows, p.num_queries - first));
  }

  void block(int batch, int head, Rows<const Acc> v, int first, int rows) {
    float* lse = p.lse + (int64_t(batch) * p.heads + head) * p.num_queries + first;
    const Rows<const Acc> q = read<T, Acc>(head_rows<T>(p.q, batch, head).from(first), rows, dim, q_room);
    const Rows<T> to = head_rows<T>(p.out, batch, head).from(first);
    const Rows<Acc> out = target<T, Acc>(to, dim, out_room);
    product<Acc>(left(q), k_turned.rows(), rows, dim, padded_keys, scores.rows());
    at_level<softmax<Acc>>(scores.rows(), rows, p.num_keys, padded_keys, Acc(p.softmax_scale), lse);
    product<Acc>(left(scores.rows()), v, rows, p.num_keys, padded_dim, out);
    write<T, Acc>(out, rows, dim, to);
  }
};

template <typename T>
struct Backward {
  using Acc = typename Accumulate<T>::type;
  const ShortAttentionBwdParams& p;
  const int dim, padded_dim, padded_keys, block_rows, copied;  // copied: 1 where tokens are not read in place
  Room<Acc> q_room, k_room, out_room, dout_room, dq_room, dk_room, dv_room, k_turned, v_turned, probs, dscores;

  Backward(const ShortAttentionBwdParams& p, int head_dim)
      : p(p),
        dim(head_dim),
        padded_dim(round_up(dim, kLanes)),
        padded_keys(round_up(p.num_keys, kLanes)),
        block_rows(queries_of_block(p.num_queries, p.num_keys)),
        copied(in_place<T>(dim) ? 0 : 1),
        q_room(copied * block_rows, dim),
        k_room(copied * p.num_keys, dim),
        out_room(copied * block_rows, dim),
        dout_room(copied * block_rows, dim),
        dq_room(copied * block_rows, dim),
        dk_room(copied * p.num_keys, dim),
        dv_room(copied * p.num_keys, dim),
        k_turned(dim, p.num_keys),
        v_turned(dim, p.num_keys),
        probs(block_rows, p.num_keys, Unset{}),
        dscores(block_rows, p.num_keys, Unset{}) {}

  void operator()(int batch, int head) {
    const Rows<const T> k = head_rows<T>(p.k, batch, head), v = head_rows<T>(p.v, batch, head);
    const Rows<T> dk_home = head_rows<T>(p.dk, batch, head), dv_home = head_rows<T>(p.dv, batch, head);
    const Rows<Acc> dk = target<T, Acc>(dk_home, dim, dk_room), dv = target<T, Acc>(dv_home, dim, dv_room);
    const Rows<const Acc> keys = read<T, Acc>(k, p.num_keys, dim, k_room);
    at_level<widen_turned<T, Acc>>(k, p.num_keys, dim, k_turned.rows());
    at_level<widen_turned<T, Acc>>(v, p.num_keys, dim, v_turned.rows());
    if (p.dbias)
      for (int part = 0; part < 3; ++part) std::fill_n(bias_sums(batch, head, part), dim, 0.0f);
    for (int first = 0; first < p.num_queries; first += block_rows)
      block(batch, head, keys, dk, dv, first, std::min(block_rows, p.num_queries - first));
    if (p.dbias) {
      at_level<add_rows<Acc>>(dk, p.num_keys, dim, bias_sums(batch, head, 1));
      at_level<add_rows<Acc>>(dv, p.num_keys, dim, bias_sums(batch, head, 2));
    }
    write<T, Acc>(dk, p.num_keys, dim, dk_home);
    write<T, Acc>(dv, p.num_keys, dim, dv_home);
  }

  void block(int batch, int head, Rows<const Acc> keys, Rows<Acc> dk, Rows<Acc> dv, int first, int rows) {
    const auto rows_of = [&](const HeadsInput& from, Room<Acc>& room) {
      return read<T, Acc>(head_rows<T>(from, batch, head).from(first), rows, dim, room);
    };
    const Rows<const Acc> q = rows_of(p.q, q_room), out = rows_of(p.out, out_room), dout = rows_of(p.dout, dout_room);
    const Rows<T> dq_home = head_rows<T>(p.dq, batch, head).from(first);
    const Rows<Acc> dq = target<T, Acc>(dq_home, dim, dq_room);
    const float* lse = p.lse + (int64_t(batch) * p.heads + head) * p.num_queries + first;
    const Acc scale = Acc(p.softmax_scale);
    product<Acc>(left(q), k_turned.rows(), rows, dim, padded_keys, probs.rows());
    product<Acc>(left(dout), v_turned.rows(), rows, dim, padded_keys, dscores.rows());
    at_level<softmax_again<Acc>>(probs.rows(), rows, p.num_keys, padded_keys, scale, lse);
    at_level<score_gradients<Acc>>(probs.rows(), dscores.rows(), out, dout, rows, padded_dim, padded_keys, scale);
    product<Acc>(turned(probs.rows()), dout, p.num_keys, rows, padded_dim, dv, first > 0);
    product<Acc>(turned(dscores.rows()), q, p.num_keys, rows, padded_dim, dk, first > 0);
    product<Acc>(left(dscores.rows()), keys, rows, p.num_keys, padded_dim, dq);
    if (p.dbias) at_level<add_rows<Acc>>(dq, rows, dim, bias_sums(batch, head, 0));
    write<T, Acc>(dq, rows, dim, dq_home);
  }

  // Where the bias gradient of q, k or v (part 0, 1, 2) is summed.
  float* bias_sums(int batch, int head, int part) {
    return p.dbias + ((int64_t(batch) * 3 + part) * p.heads + head) * dim;
  }
};

}  // namespace lgfast
