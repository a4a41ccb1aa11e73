// Forward and backward of short_attention on the CPU for bfloat16, on processors that multiply it (bf16_matmul.h).
//
// Numerics as on a GPU: probabilities (before the division by their sum) and score gradients (before the scale) are
// rounded to bfloat16; the softmax and all sums are float32. The code takes queries in strips, whose float32 scores
// stay in the first-level cache. Backward keeps the rounded probabilities and score gradients of a whole block of
// queries, for the products that sum over queries.
#pragma once

#include "common/bf16_matmul.h"
#include "common/bf16_rows.h"

#if defined(LGFAST_CPU_LEVELS)
#include <algorithm>
#include <cmath>
#include <limits>

#include "short_attention/head_rows.h"

namespace lgfast {

constexpr int kStripQueries = 24;  // even, so that a pair of queries lies in one strip

inline LeftPairs left_pairs(Rows<const bf16> rows) { return {rows.data, rows.stride, 2}; }

// Reads rows of pairs of tokens as a transposed left factor [columns, 2 * pairs].
inline LeftPairs turned_pairs(Rows<Pair> pairs) { return {&pairs.data->first, 2, 2 * pairs.stride}; }

// c [rows, columns] (+)= a [rows, 2 * pairs] b [2 * pairs, columns].
inline void product(LeftPairs a, Rows<Pair> b, int rows, int pairs, int columns, Rows<float> c, bool add = false) {
  bf16_matmul(a, b.data, b.stride, rows, pairs, columns, c.data, c.stride, add);
}

// Stores tokens [rows, columns] as a right factor whose depth is the columns: [columns / 2, rows] pairs.
LGFAST_TARGET_BF16 inline void pair_columns(Rows<const bf16> from, int rows, int columns, Rows<Pair> to) {
  for (int c = 0; c < columns; c += 2)
    for (int r = 0; r < rows; ++r) {
      const bf16* values = from.data + r * from.stride + c;
      to.data[c / 2 * to.stride + r] = {values[0], values[1]};
    }
}

// Stores tokens as a right factor whose depth is the rows: [rows / 2, columns] pairs. Zeros fill up the last pair of an
// odd number of rows.
LGFAST_TARGET_BF16 inline void pair_rows(Rows<const bf16> from, int rows, int columns, Rows<Pair> to) {
  for (int r = 0; r < rows; r += 2) {
    const bf16* __restrict__ first = from.from(r).data;
    Pair* __restrict__ pairs = to.from(r / 2).data;
    if (r + 1 < rows) {
      const bf16* __restrict__ second = from.from(r + 1).data;
      for (int c = 0; c < columns; ++c) pairs[c] = {first[c], second[c]};
    } else {
      for (int c = 0; c < columns; ++c) pairs[c] = {first[c], bf16{0}};
    }
  }
}

struct Softmax {
  float max, sum;
};

// Turns the scores of one query into exp(scale * (scores - max)) in bf16, zero beyond the keys.
LGFAST_TARGET_BF16 inline Softmax softmax(const float* scores, int keys, float scale, bf16* probs) {
  const __m512 least = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 maxima = least, sums = _mm512_setzero_ps();
  for (int j = 0; j < keys; j += kPairLanes)
    maxima = _mm512_max_ps(maxima, _mm512_mask_loadu_ps(least, lanes_before(keys, j), scores + j));
  const float max = _mm512_reduce_max_ps(maxima);
  const __m512 shift = _mm512_set1_ps(max), factor = _mm512_set1_ps(scale * float(kLog2E));
  for (int j = 0; j < keys; j += kPairLanes) {
    const __m512 score = _mm512_mask_loadu_ps(least, lanes_before(keys, j), scores + j);
    const __m512 prob = exp2_vector((score - shift) * factor);
    sums += prob;
    _mm256_storeu_si256((__m256i*)(probs + j), (__m256i)_mm512_cvtneps_pbh(prob));
  }
  return {max, _mm512_reduce_add_ps(sums)};
}

// Turns the scores of a query into its probabilities p, and dp into p * (dp - delta). Both are zero beyond the keys.
LGFAST_TARGET_BF16 inline void score_gradients(float* p, float* dp, int keys, float scale, float lse, float delta) {
  const __m512 factor = _mm512_set1_ps(scale * float(kLog2E)), offset = _mm512_set1_ps(lse * float(kLog2E));
  for (int j = 0; j < keys; j += kPairLanes) {
    const __m512 prob = _mm512_maskz_mov_ps(lanes_before(keys, j),
                                            exp2_vector(_mm512_fmsub_ps(_mm512_loadu_ps(p + j), factor, offset)));
    _mm512_storeu_ps(p + j, prob);
    _mm512_storeu_ps(dp + j, prob * (_mm512_loadu_ps(dp + j) - _mm512_set1_ps(delta)));
  }
}

// sums [columns] += factor * the sum of the rows.
LGFAST_TARGET_BF16 inline void add_rows(Rows<float> from, int rows, int columns, float factor,
                                        float* __restrict__ sums) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) sums[c] += factor * from.data[r * from.stride + c];
}

struct Bf16Forward {
  const ShortAttentionFwdParams& p;
  const int dim, padded_dim, padded_keys, key_pairs;
  Room<Pair> k_turned, v_pairs;
  Room<float> scores, out;
  Room<bf16> probs;

  Bf16Forward(const ShortAttentionFwdParams& p, int head_dim)
      : p(p),
        dim(head_dim),
        padded_dim(round_up(dim, kPairLanes)),
        padded_keys(round_up(p.num_keys, kPairLanes)),
        key_pairs((p.num_keys + 1) / 2),
        k_turned(dim / 2, p.num_keys),
        v_pairs(key_pairs, dim),
        scores(kStripQueries, p.num_keys),
        out(kStripQueries, dim),
        probs(kStripQueries, p.num_keys) {}

  void operator()(int batch, int head) {
    pair_columns(head_rows<bf16>(p.k, batch, head), p.num_keys, dim, k_turned.rows());
    pair_rows(head_rows<bf16>(p.v, batch, head), p.num_keys, dim, v_pairs.rows());
    for (int first = 0; first < p.num_queries; first += kStripQueries)
      strip(batch, head, first, std::min(kStripQueries, p.num_queries - first));
  }

  void strip(int batch, int head, int first, int rows) {
    float* lse = p.lse + (int64_t(batch) * p.heads + head) * p.num_queries + first;
    const Rows<const bf16> q = head_rows<bf16>(p.q, batch, head).from(first);
    const Rows<bf16> to = head_rows<bf16>(p.out, batch, head).from(first);
    float shares[kStripQueries];
    product(left_pairs(q), k_turned.rows(), rows, dim / 2, padded_keys, scores.rows());
    for (int r = 0; r < rows; ++r) {
      float* row = scores.rows().from(r).data;
      const Softmax s = softmax(row, p.num_keys, p.softmax_scale, probs.rows().from(r).data);
      lse[r] = s.max * p.softmax_scale + std::log(s.sum);
      shares[r] = 1 / s.sum;
    }
    product(left_pairs(probs.rows()), v_pairs.rows(), rows, key_pairs, padded_dim, out.rows());
    for (int r = 0; r < rows; ++r) narrow(out.rows().from(r).data, dim, shares[r], to.from(r).data);
  }
};

struct Bf16Backward {
  const ShortAttentionBwdParams& p;
  const int dim, padded_dim, padded_keys, key_pairs, block_rows;
  Room<Pair> k_turned, v_turned, k_pairs, q_pairs, dout_pairs, prob_pairs, dscore_pairs;
  Room<float> probs, dprobs, dq, dk, dv;
  Room<bf16> dscores;

  Bf16Backward(const ShortAttentionBwdParams& p, int head_dim)
      : p(p),
        dim(head_dim),
        padded_dim(round_up(dim, kPairLanes)),
        padded_keys(round_up(p.num_keys, kPairLanes)),
        key_pairs((p.num_keys + 1) / 2),
        block_rows(round_up(queries_of_block(p.num_queries, p.num_keys), 2)),
        k_turned(dim / 2, p.num_keys),
        v_turned(dim / 2, p.num_keys),
        k_pairs(key_pairs, dim),
        q_pairs(block_rows / 2, dim),
        dout_pairs(block_rows / 2, dim),
        prob_pairs(block_rows / 2, p.num_keys),
        dscore_pairs(block_rows / 2, p.num_keys),
        probs(kStripQueries, p.num_keys),
        dprobs(kStripQueries, p.num_keys),
        dq(block_rows, dim),
        dk(p.num_keys, dim),
        dv(p.num_keys, dim),
        dscores(block_rows, p.num_keys) {}

  void operator()(int batch, int head) {
    const Rows<const bf16> k = head_rows<bf16>(p.k, batch, head), v = head_rows<bf16>(p.v, batch, head);
    pair_columns(k, p.num_keys, dim, k_turned.rows());
    pair_columns(v, p.num_keys, dim, v_turned.rows());
    pair_rows(k, p.num_keys, dim, k_pairs.rows());
    if (p.dbias)
      for (int part = 0; part < 3; ++part) std::fill_n(bias_sums(batch, head, part), dim, 0.0f);
    for (int first = 0; first < p.num_queries; first += block_rows)
      block(batch, head, first, std::min(block_rows, p.num_queries - first));
    finish(dk.rows(), p.num_keys, p.softmax_scale, head_rows<bf16>(p.dk, batch, head), bias_sums(batch, head, 1));
    finish(dv.rows(), p.num_keys, 1, head_rows<bf16>(p.dv, batch, head), bias_sums(batch, head, 2));
  }

  void block(int batch, int head, int first, int rows) {
    const Rows<const bf16> q = head_rows<bf16>(p.q, batch, head).from(first);
    const Rows<const bf16> dout = head_rows<bf16>(p.dout, batch, head).from(first);
    const int query_pairs = (rows + 1) / 2;
    for (int r = 0; r < rows; r += kStripQueries) strip(batch, head, first, r, std::min(kStripQueries, rows - r));
    pair_rows(q, rows, dim, q_pairs.rows());
    pair_rows(dout, rows, dim, dout_pairs.rows());
    product(turned_pairs(prob_pairs.rows()), dout_pairs.rows(), p.num_keys, query_pairs, padded_dim, dv.rows(),
            first > 0);
    product(turned_pairs(dscore_pairs.rows()), q_pairs.rows(), p.num_keys, query_pairs, padded_dim, dk.rows(),
            first > 0);
    product(left_pairs(dscores.rows()), k_pairs.rows(), rows, key_pairs, padded_dim, dq.rows());
    const Rows<bf16> to = head_rows<bf16>(p.dq, batch, head).from(first);
    finish(dq.rows(), rows, p.softmax_scale, to, bias_sums(batch, head, 0));
  }

  // Computes probabilities and score gradients of `rows` queries, from `row` of the block that starts at `first` on.
  void strip(int batch, int head, int first, int row, int rows) {
    const auto rows_of = [&](const HeadsInput& view) { return head_rows<bf16>(view, batch, head).from(first + row); };
    const Rows<const bf16> q = rows_of(p.q), out = rows_of(p.out), dout = rows_of(p.dout);
    const float* lse = p.lse + (int64_t(batch) * p.heads + head) * p.num_queries + first + row;
    product(left_pairs(q), k_turned.rows(), rows, dim / 2, padded_keys, probs.rows());
    product(left_pairs(dout), v_turned.rows(), rows, dim / 2, padded_keys, dprobs.rows());
    for (int r = 0; r < rows; ++r) {
      float *prob = probs.rows().from(r).data, *dprob = dprobs.rows().from(r).data;
      const float delta = dot(out.from(r).data, dout.from(r).data, dim);
      score_gradients(prob, dprob, p.num_keys, p.softmax_scale, lse[r], delta);
      narrow(dprob, padded_keys, 1, dscores.rows().from(row + r).data);
    }
    if (rows % 2) {
      std::fill_n(probs.rows().from(rows).data, padded_keys, 0.0f);
      std::fill_n(dprobs.rows().from(rows).data, padded_keys, 0.0f);
    }
    for (int r = 0; r < rows; r += 2) {
      const Rows<float> prob = probs.rows().from(r), dprob = dprobs.rows().from(r);
      interleave(prob.data, prob.from(1).data, padded_keys, prob_pairs.rows().from((row + r) / 2).data);
      interleave(dprob.data, dprob.from(1).data, padded_keys, dscore_pairs.rows().from((row + r) / 2).data);
    }
  }

  // Writes gradients, times `factor`, to their output, and adds their sums to the bias gradient.
  void finish(Rows<float> from, int rows, float factor, Rows<bf16> to, float* sums) {
    for (int r = 0; r < rows; ++r) narrow(from.from(r).data, dim, factor, to.from(r).data);
    if (p.dbias) add_rows(from, rows, dim, factor, sums);
  }

  // Where the bias gradient of q, k or v (part 0, 1, 2) is summed, or nullptr.
  float* bias_sums(int batch, int head, int part) {
    return p.dbias ? p.dbias + ((int64_t(batch) * 3 + part) * p.heads + head) * dim : nullptr;
  }
};

}  // namespace lgfast
#else
namespace lgfast {
struct Bf16Forward;
struct Bf16Backward;
}  // namespace lgfast
#endif
