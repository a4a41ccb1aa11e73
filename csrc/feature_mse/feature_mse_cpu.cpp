// feature_mse on the CPU: sum over pairs of mean((resize(student) - resize(teacher))^2), and its gradient.
//
// Work unit: one image of one pair, walked row by row of the common grid, so everything between the maps and the
// gradient stays in cache. Inner loops run over channels, which are contiguous, in blocks of 8.
// Numerics: float accumulation (double for double maps), row sums of the loss in double. Each unit has its own
// partial sum and gradient, and partial sums are added in order: the result does not depend on the thread count.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/accumulate.h"
#include "common/dispatch.h"
#include "feature_mse/bilinear.h"
#include "feature_mse/feature_mse_inputs.h"

namespace lgfast {
namespace {

using torch::stable::Tensor;

constexpr int kLanes = 8;  // two SSE registers, one AVX register

// out[i] = a[i] * wa + b[i] * wb, n values
template <typename Acc>
inline void blend(Acc* __restrict__ out, const Acc* __restrict__ a, Acc wa, const Acc* __restrict__ b, Acc wb, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) out[i + l] = a[i + l] * wa + b[i + l] * wb;
  for (; i < n; ++i) out[i] = a[i] * wa + b[i] * wb;
}

// out[i] += a[i] * w
template <typename Acc>
inline void accumulate(Acc* __restrict__ out, const Acc* __restrict__ a, Acc w, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) out[i + l] += a[i + l] * w;
  for (; i < n; ++i) out[i] += a[i] * w;
}

// difference[i] = a[i] - b[i]; returns the sum of its squares
template <typename Acc>
inline double subtract(Acc* __restrict__ difference, const Acc* __restrict__ a, const Acc* __restrict__ b, int n) {
  Acc sums[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) {
      const Acc d = a[i + l] - b[i + l];
      difference[i + l] = d;
      sums[l] += d * d;
    }
  double sum = 0;
  for (; i < n; ++i) {
    difference[i] = a[i] - b[i];
    sum += difference[i] * difference[i];
  }
  for (Acc lane : sums) sum += lane;
  return sum;
}

template <typename Acc>
std::vector<Tap<Acc>> bilinear_taps(int in, int out) {
  std::vector<Tap<Acc>> taps(out);
  for (int x = 0; x < out; ++x) taps[x] = bilinear_tap<Acc>(x, in, out);
  return taps;
}

// One image of a map, read by rows of the common grid.
template <typename T, typename Acc>
class ResizedMap {
 public:
  ResizedMap(int h, int w, int grid_h, int grid_w, int channels)
      : row_taps_(bilinear_taps<Acc>(h, grid_h)), column_taps_(bilinear_taps<Acc>(w, grid_w)),
        w_(w), grid_w_(grid_w), channels_(channels),
        pixels_(static_cast<size_t>(h) * w * channels), blended_(w * channels), row_(grid_w * channels) {}

  void load(const T* image, int64_t row_stride, int64_t column_stride) {
    Acc* out = pixels_.data();
    const int64_t h = static_cast<int64_t>(pixels_.size()) / blended_.size();
    for (int64_t y = 0; y < h; ++y)
      for (int64_t x = 0; x < w_; ++x, out += channels_) {
        const T* in = image + y * row_stride + x * column_stride;
        for (int c = 0; c < channels_; ++c) out[c] = Accumulate<T>::load(in[c]);
      }
  }

  // Row y of the resized map, [grid_w, C]; valid until the next call.
  const Acc* row(int y) {
    const Tap<Acc> tap = row_taps_[y];
    const int n = static_cast<int>(blended_.size());
    const Acc* low = pixels_.data() + static_cast<size_t>(tap.low) * n;
    const Acc* rows = low;
    if (tap.weight != Acc(0)) {
      const Acc* high = pixels_.data() + static_cast<size_t>(tap.high) * n;
      blend(blended_.data(), low, Acc(1) - tap.weight, high, tap.weight, n);
      rows = blended_.data();
    }
    if (w_ == grid_w_) return rows;
    for (int x = 0; x < grid_w_; ++x) {
      const Tap<Acc> t = column_taps_[x];
      blend(row_.data() + x * channels_, rows + t.low * channels_, Acc(1) - t.weight, rows + t.high * channels_,
            t.weight, channels_);
    }
    return row_.data();
  }

  // The transpose of row(y): adds `difference`, [grid_w, C], into `grad`, [h, w, C].
  void add_transposed(Acc* grad, int y, const Acc* difference) {
    const Tap<Acc> tap = row_taps_[y];
    const int n = static_cast<int>(blended_.size());
    const Acc* rows = difference;
    if (w_ != grid_w_) {
      std::fill(blended_.begin(), blended_.end(), Acc(0));
      for (int x = 0; x < grid_w_; ++x) {
        const Tap<Acc> t = column_taps_[x];
        accumulate(blended_.data() + t.low * channels_, difference + x * channels_, Acc(1) - t.weight, channels_);
        accumulate(blended_.data() + t.high * channels_, difference + x * channels_, t.weight, channels_);
      }
      rows = blended_.data();
    }
    accumulate(grad + static_cast<size_t>(tap.low) * n, rows, Acc(1) - tap.weight, n);
    if (tap.weight != Acc(0)) accumulate(grad + static_cast<size_t>(tap.high) * n, rows, tap.weight, n);
  }

 private:
  std::vector<Tap<Acc>> row_taps_, column_taps_;
  int w_, grid_w_, channels_;
  std::vector<Acc> pixels_, blended_, row_;
};

// Images [begin, end) of one pair; partial[b] receives the sum of squares of image b.
template <typename T>
void feature_mse_images(const FeatureMsePair& p, int64_t begin, int64_t end, double* partial) {
  using Acc = typename Accumulate<T>::type;
  const int channels = p.channels, row_numel = p.grid_w * channels;
  const int64_t map_numel = static_cast<int64_t>(p.student_h) * p.student_w * channels;
  ResizedMap<T, Acc> student(p.student_h, p.student_w, p.grid_h, p.grid_w, channels);
  ResizedMap<T, Acc> teacher(p.teacher_h, p.teacher_w, p.grid_h, p.grid_w, channels);
  std::vector<Acc> difference(row_numel), grad(map_numel);
  for (int64_t b = begin; b < end; ++b) {
    student.load(static_cast<const T*>(p.student) + b * p.student_image_stride,
                 p.student_token_stride * p.student_w, p.student_token_stride);
    teacher.load(static_cast<const T*>(p.teacher) + b * p.teacher_image_stride, p.teacher_row_stride,
                 p.teacher_column_stride);
    std::fill(grad.begin(), grad.end(), Acc(0));
    partial[b] = 0;
    for (int y = 0; y < p.grid_h; ++y) {
      partial[b] += subtract(difference.data(), student.row(y), teacher.row(y), row_numel);
      if (p.grad) student.add_transposed(grad.data(), y, difference.data());
    }
    if (!p.grad) continue;
    T* out = static_cast<T*>(p.grad) + b * map_numel;
    for (int64_t i = 0; i < map_numel; ++i) out[i] = Accumulate<T>::store(grad[i] * static_cast<Acc>(p.grad_scale));
  }
}

std::tuple<Tensor, Tensor> feature_mse_fwd(const std::vector<Tensor>& student, const std::vector<Tensor>& teacher,
                                           const std::vector<int64_t>& grids, double grad_scale) {
  using torch::headeronly::ScalarType;
  FeatureMseInputs in = feature_mse_inputs(student, teacher, grids, grad_scale);
  const ScalarType dtype = student[0].scalar_type();
  const int64_t units = in.batch * static_cast<int64_t>(in.pairs.size());
  std::vector<double> partial(units);
  dispatch_float("feature_mse", dtype, [&](auto zero) {
    using T = decltype(zero);
    torch::stable::parallel_for(0, in.batch, 1, [&](int64_t begin, int64_t end) {
      for (size_t k = 0; k < in.pairs.size(); ++k)
        feature_mse_images<T>(in.pairs[k], begin, end, partial.data() + k * in.batch);
    });
  });
  double loss = 0;
  for (int64_t u = 0; u < units; ++u) loss += partial[u] * in.pairs[u / in.batch].loss_scale;
  Tensor out = torch::stable::new_empty(student[0], {}, dtype == ScalarType::Double ? dtype : ScalarType::Float);
  torch::stable::fill_(out, loss);
  return {out, in.grad};
}

// dloss * scale * grad, the product of scalars taken before it meets the stored gradient.
Tensor feature_mse_bwd(const Tensor& dloss, const Tensor& grad, double scale) {
  LGFAST_CHECK(dloss.numel() == 1, "feature_mse", "dloss must be a scalar, got ", shape(dloss));
  LGFAST_CHECK(grad.is_contiguous(), "feature_mse", "grad must be contiguous");
  Tensor out = torch::stable::empty_like(grad);
  double factor = scale;
  dispatch_float("feature_mse", dloss.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    factor *= Accumulate<T>::load(*static_cast<const T*>(dloss.const_data_ptr()));
  });
  dispatch_float("feature_mse", grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using Acc = typename Accumulate<T>::type;
    const T* in = static_cast<const T*>(grad.const_data_ptr());
    T* result = static_cast<T*>(out.mutable_data_ptr());
    torch::stable::parallel_for(0, grad.numel(), 1 << 16, [&](int64_t begin, int64_t end) {
      const Acc f = static_cast<Acc>(factor);
      for (int64_t i = begin; i < end; ++i) result[i] = Accumulate<T>::store(Accumulate<T>::load(in[i]) * f);
    });
  });
  return out;
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CPU, m) {
  m.impl("feature_mse_fwd", TORCH_BOX(&lgfast::feature_mse_fwd));
  m.impl("feature_mse_bwd", TORCH_BOX(&lgfast::feature_mse_bwd));
}
