// The loops over rows of vit_block between its products. The compiler turns them into vector code.
#pragma once

#include <cmath>

#include "bias_gelu/gelu.h"
#include "short_attention/short_attention_cpu_float.h"

namespace lgfast {

// The mean and 1 / standard deviation of a row.
template <typename T>
struct RowStatistics {
  T mean, rstd;
};

// Gives the statistics of up to kRowsTogether rows.
template <typename T>
LGFAST_INLINE void row_statistics(Rows<const T> x, int rows, int width, T eps, RowStatistics<T>* statistics) {
  for (int r = 0; r < rows; ++r) {
    Lanes<T> sums = {};
    for (int c = 0; c < width; c += kLanes) sums += lanes_at(x.from(r).data + c);
    statistics[r].mean = total<T>(sums) / width;
  }
  for (int r = 0; r < rows; ++r) {
    Lanes<T> squares = {};
    const T mean = statistics[r].mean;
    for (int c = 0; c < width; c += kLanes) {
      const Lanes<T> centred = lanes_at(x.from(r).data + c) - mean;
      squares += centred * centred;
    }
    statistics[r].rstd = total<T>(squares) / width + eps;
  }
  for (int r = 0; r < rows; ++r) statistics[r].rstd = 1 / std::sqrt(statistics[r].rstd);
}

// to = LayerNorm(x), row by row. Keeps the statistics where they are wanted.
template <typename T>
void norm_rows(Rows<const T> x, const T* __restrict__ weight, const T* __restrict__ bias, int rows, int width, T eps,
               Rows<T> to, RowStatistics<T>* statistics) {
  for (int first = 0; first < rows; first += kRowsTogether) {
    const int count = std::min(kRowsTogether, rows - first);
    RowStatistics<T> group[kRowsTogether];
    row_statistics(x.from(first), count, width, eps, group);
    for (int r = 0; r < count; ++r) {
      const T *in = x.from(first + r).data, mean = group[r].mean, rstd = group[r].rstd;
      T* __restrict__ out = to.from(first + r).data;
      for (int c = 0; c < width; ++c) out[c] = (in[c] - mean) * rstd * weight[c] + bias[c];
      if (statistics) statistics[first + r] = group[r];
    }
  }
}

// dx = dresidual + the gradient of LayerNorm for dout.
template <typename T>
void norm_gradient_rows(Rows<const T> dout, Rows<const T> x, const RowStatistics<T>* statistics,
                        const T* __restrict__ weight, Rows<const T> dresidual, int rows, int width, Rows<T> dx) {
  for (int r = 0; r < rows; ++r) {
    const T *d = dout.from(r).data, *in = x.from(r).data, *residual = dresidual.from(r).data;
    const T mean = statistics[r].mean, rstd = statistics[r].rstd;
    Lanes<T> sums = {}, products = {};
    for (int c = 0; c < width; c += kLanes) {
      const Lanes<T> scaled = lanes_at(d + c) * lanes_at(weight + c);
      sums += scaled;
      products += scaled * (lanes_at(in + c) - mean);
    }
    const T sum = total<T>(sums) / width, slope = total<T>(products) * rstd * rstd / width;
    T* __restrict__ out = dx.from(r).data;
    for (int c = 0; c < width; ++c) out[c] = residual[c] + rstd * (d[c] * weight[c] - sum - (in[c] - mean) * slope);
  }
}

// dweight and dbias of LayerNorm += the sums over rows.
template <typename T>
void add_norm_parameter_gradients(Rows<const T> dout, Rows<const T> x, const RowStatistics<T>* statistics, int rows,
                                  int width, T* __restrict__ dweight, T* __restrict__ dbias) {
  for (int r = 0; r < rows; ++r) {
    const T *d = dout.from(r).data, *in = x.from(r).data;
    const T mean = statistics[r].mean, rstd = statistics[r].rstd;
    for (int c = 0; c < width; ++c) {
      dweight[c] += d[c] * (in[c] - mean) * rstd;
      dbias[c] += d[c];
    }
  }
}

// sums += the sum of the rows.
template <typename T>
void add_to_sums(Rows<const T> from, int rows, int width, T* __restrict__ sums) {
  for (int r = 0; r < rows; ++r) {
    const T* row = from.from(r).data;
    for (int c = 0; c < width; ++c) sums[c] += row[c];
  }
}

// to = residual + bias, row by row.
template <typename T>
void add_bias_rows(Rows<const T> residual, const T* __restrict__ bias, int rows, int width, Rows<T> to) {
  for (int r = 0; r < rows; ++r) {
    const T* from = residual.from(r).data;
    T* __restrict__ out = to.from(r).data;
    for (int c = 0; c < width; ++c) out[c] = from[c] + bias[c];
  }
}

template <typename T>
void gelu_rows(Rows<const T> x, int rows, int width, Rows<T> to) {
  for (int r = 0; r < rows; ++r) {
    const T* in = x.from(r).data;
    T* __restrict__ out = to.from(r).data;
    for (int c = 0; c < width; ++c) out[c] = in[c] * normal(in[c]).cdf;
  }
}

// Computes gelu(x) again, and multiplies d by gelu'(x).
template <typename T>
void gelu_gradient_rows(Rows<const T> x, int rows, int width, Rows<T> to, Rows<T> d) {
  for (int r = 0; r < rows; ++r) {
    const T* in = x.from(r).data;
    T* __restrict__ out = to.from(r).data, * __restrict__ slope = d.from(r).data;
    for (int c = 0; c < width; ++c) {
      const Normal<T> at = normal(in[c]);
      out[c] = in[c] * at.cdf;
      slope[c] *= at.cdf + in[c] * at.pdf;
    }
  }
}

}  // namespace lgfast
