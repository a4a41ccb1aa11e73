// feature_mse on the CPU: sum over pairs of mean((resize(student) - resize(teacher))^2), and its gradient.
//
// Work unit: one image of one pair. Columns are resized first, row by row of the small map; then each row of the grid
// is one fused loop over grid_w * C contiguous values: blend two rows of each map, compare, add into two rows of the
// gradient. Last, the columns of the gradient go back to the student's. All of it stays in cache.
// Numerics: float accumulation (double for double maps), row sums of the loss in double. Each unit has its own
// partial sum and gradient, and partial sums are added in order: the result does not depend on the thread count.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "common/accumulate.h"
#include "common/dispatch.h"
#include "feature_mse/feature_mse_inputs.h"
#include "feature_mse/feature_mse_rows.h"

namespace lgfast {
namespace {

using torch::stable::Tensor;

template <typename Acc>
std::vector<Tap<Acc>> bilinear_taps(int in, int out) {
  std::vector<Tap<Acc>> taps(out);
  for (int x = 0; x < out; ++x) taps[x] = bilinear_tap<Acc>(x, in, out);
  return taps;
}

// One image of a map with its columns resized to the grid; rows are blended where they are used.
template <typename T>
class WideMap {
 public:
  using Acc = typename Accumulate<T>::type;

  WideMap(int h, int w, int grid_h, int grid_w, int channels)
      : row_taps_(bilinear_taps<Acc>(h, grid_h)),
        column_taps_(bilinear_taps<Acc>(w, grid_w)),
        w_(w),
        grid_w_(grid_w),
        channels_(channels),
        rows_(h),
        converted_(w * channels),
        wide_(static_cast<size_t>(h) * grid_w * channels) {}

  void load(const T* image, int64_t row_stride, int64_t column_stride) {
    for (size_t y = 0; y < rows_.size(); ++y) {
      const T* row = image + y * row_stride;
      Acc* wide = wide_.data() + y * grid_w_ * channels_;
      if (w_ == grid_w_) {
        rows_[y] = dense_row(row, column_stride, wide);
        continue;
      }
      at_level<expand_columns<Acc>>(dense_row(row, column_stride, converted_.data()), wide, column_taps_.data(),
                                    grid_w_, channels_);
      rows_[y] = wide;
    }
  }

  const Tap<Acc>& row_tap(int y) const { return row_taps_[y]; }
  BlendedRow<Acc> row(int y) const {
    const Tap<Acc>& tap = row_taps_[y];
    return {rows_[tap.low], rows_[tap.high], tap.weight};
  }

  // One row of a wide gradient, [grid_w, C], into the map's gradient, [w, C], times scale.
  void store_grad_row(const Acc* wide, Acc scale, T* out) const {
    at_level<reduce_columns<T, Acc>>(wide, out, column_taps_.data(), grid_w_, w_, channels_, scale);
  }

 private:
  // Returns the row in place where its type can be read directly, else converted into `out`.
  const Acc* dense_row(const T* row, int64_t column_stride, Acc* out) const {
    if constexpr (std::is_same_v<T, Acc>)
      if (column_stride == channels_) return row;
    for (int x = 0; x < w_; ++x)
      for (int c = 0; c < channels_; ++c) out[x * channels_ + c] = Accumulate<T>::load(row[x * column_stride + c]);
    return out;
  }

  std::vector<Tap<Acc>> row_taps_, column_taps_;
  int w_, grid_w_, channels_;
  std::vector<const Acc*> rows_;
  std::vector<Acc> converted_, wide_;
};

template <typename Acc>
double compare(BlendedRow<Acc> student, BlendedRow<Acc> teacher, Acc* grad_low, Acc* grad_high, int n) {
  const bool blend_student = student.weight != Acc(0), blend_teacher = teacher.weight != Acc(0);
  const auto call = [&](auto s, auto t, auto g) {
    return at_level<compare_rows<s.value, t.value, g.value, Acc>>(student, teacher, grad_low, grad_high, n);
  };
  const auto with_grad = [&](auto s, auto t) {
    return grad_low ? call(s, t, std::true_type{}) : call(s, t, std::false_type{});
  };
  const auto with_teacher = [&](auto s) {
    return blend_teacher ? with_grad(s, std::true_type{}) : with_grad(s, std::false_type{});
  };
  return blend_student ? with_teacher(std::true_type{}) : with_teacher(std::false_type{});
}

// Images [begin, end) of one pair; partial[b] receives the sum of squares of image b.
template <typename T>
void feature_mse_images(const FeatureMsePair& p, int64_t begin, int64_t end, double* partial) {
  using Acc = typename Accumulate<T>::type;
  const int row_numel = p.grid_w * p.channels;
  WideMap<T> student(p.student_h, p.student_w, p.grid_h, p.grid_w, p.channels);
  WideMap<T> teacher(p.teacher_h, p.teacher_w, p.grid_h, p.grid_w, p.channels);
  std::vector<Acc> grad(p.grad ? static_cast<size_t>(p.student_h) * row_numel : 0);
  for (int64_t b = begin; b < end; ++b) {
    student.load(static_cast<const T*>(p.student) + b * p.student_image_stride, p.student_token_stride * p.student_w,
                 p.student_token_stride);
    teacher.load(static_cast<const T*>(p.teacher) + b * p.teacher_image_stride, p.teacher_row_stride,
                 p.teacher_column_stride);
    std::fill(grad.begin(), grad.end(), Acc(0));
    double squares = 0;
    for (int y = 0; y < p.grid_h; ++y) {
      const Tap<Acc>& tap = student.row_tap(y);
      Acc* low = p.grad ? grad.data() + static_cast<size_t>(tap.low) * row_numel : nullptr;
      Acc* high = p.grad ? grad.data() + static_cast<size_t>(tap.high) * row_numel : nullptr;
      squares += compare(student.row(y), teacher.row(y), low, high, row_numel);
    }
    partial[b] = squares;
    const int64_t map_row = static_cast<int64_t>(p.student_w) * p.channels;
    T* out = static_cast<T*>(p.grad) + b * p.student_h * map_row;
    for (int y = 0; p.grad && y < p.student_h; ++y)
      student.store_grad_row(grad.data() + static_cast<size_t>(y) * row_numel, static_cast<Acc>(p.grad_scale),
                             out + y * map_row);
  }
}

double scalar(const Tensor& tensor) {
  double value = 0;
  dispatch_float("feature_mse", tensor.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    value = Accumulate<T>::load(*static_cast<const T*>(tensor.const_data_ptr()));
  });
  return value;
}

// Rounds the value to the scalar tensor's type; beyond its range it becomes infinite, which fill_ would refuse.
void store_scalar(Tensor& tensor, double value) {
  dispatch_float("feature_mse", tensor.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using Acc = typename Accumulate<T>::type;
    *static_cast<T*>(tensor.mutable_data_ptr()) = Accumulate<T>::store(static_cast<Acc>(value));
  });
}

std::tuple<Tensor, Tensor, Tensor> feature_mse_fwd(const std::vector<Tensor>& student,
                                                   const std::vector<Tensor>& teacher,
                                                   const std::vector<int64_t>& grids, double grad_scale,
                                                   const std::optional<Tensor>& weight) {
  FeatureMseInputs in = feature_mse_inputs(student, teacher, grids, grad_scale, weight);
  const double factor = weight ? scalar(*weight) : 1.0;
  for (FeatureMsePair& pair : in.pairs) pair.grad_scale *= factor;
  const int64_t units = in.batch * static_cast<int64_t>(in.pairs.size());
  std::vector<double> partial(units);
  dispatch_float("feature_mse", student[0].scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    torch::stable::parallel_for(0, in.batch, 1, [&](int64_t begin, int64_t end) {
      for (size_t k = 0; k < in.pairs.size(); ++k)
        feature_mse_images<T>(in.pairs[k], begin, end, partial.data() + k * in.batch);
    });
  });
  double loss = 0;
  for (int64_t u = 0; u < units; ++u) loss += partial[u] * in.pairs[u / in.batch].loss_scale;
  store_scalar(in.loss, loss);
  if (weight) store_scalar(in.weighted, factor * loss);
  return {in.loss, in.grad, in.weighted};
}

// Writes dloss * scale * grad; the two scalars are multiplied first.
Tensor feature_mse_bwd(const Tensor& dloss, const Tensor& grad, double scale) {
  LGFAST_CHECK(dloss.numel() == 1, "feature_mse", "dloss must be a scalar, got ", shape(dloss));
  LGFAST_CHECK(grad.is_contiguous(), "feature_mse", "grad must be contiguous");
  Tensor out = torch::stable::empty_like(grad);
  const double factor = scale * scalar(dloss);
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
