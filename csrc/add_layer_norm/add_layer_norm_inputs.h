// Checks and allocation of add_layer_norm, shared by the CPU and the CUDA entry points.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "add_layer_norm/add_layer_norm.h"
#include "common/check.h"
#include "common/packed.h"

namespace lgfast {

template <typename Params, typename... Outputs>
struct AddLayerNormInputs {
  Params params{};
  std::vector<torch::stable::Tensor> kept;  // tensors that the pointers point into
  std::tuple<Outputs...> outputs;
};

using AddLayerNormFwdInputs = AddLayerNormInputs<AddLayerNormFwdParams, torch::stable::Tensor, torch::stable::Tensor,
                                                 torch::stable::Tensor, torch::stable::Tensor>;
using AddLayerNormBwdInputs =
    AddLayerNormInputs<AddLayerNormBwdParams, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>;

inline torch::headeronly::ScalarType statistics_dtype(const torch::stable::Tensor& like) {
  using torch::headeronly::ScalarType;
  return like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Keeps a packed copy of a tensor that must have the size and dtype of `like`, and returns where its elements are.
template <typename Inputs>
const void* keep(Inputs& in, const torch::stable::Tensor& tensor, const torch::stable::Tensor& like, int64_t numel,
                 const char* name) {
  LGFAST_CHECK(tensor.numel() == numel, "add_layer_norm", name, " must have ", numel, " elements for y ", shape(like),
               ", got ", shape(tensor));
  LGFAST_CHECK(tensor.scalar_type() == like.scalar_type(), "add_layer_norm", name, " must have dtype ",
               toString(like.scalar_type()), ", got ", toString(tensor.scalar_type()));
  check_same_device("add_layer_norm", name, tensor, "the map", like);
  in.kept.push_back(packed(tensor));
  return in.kept.back().const_data_ptr();
}

template <typename Inputs>
void set_add_layer_norm_shape(Inputs& in, const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                              const std::optional<torch::stable::Tensor>& drop_scale) {
  LGFAST_CHECK(x.dim() >= 2, "add_layer_norm", "x must be [B, ..., C], got ", shape(x));
  const int64_t channels = x.size(x.dim() - 1), batch = x.size(0);
  LGFAST_CHECK(channels % 8 == 0 && channels >= 8 && channels <= kAddLayerNormMaxChannels, "add_layer_norm",
               "channels must be a multiple of 8 from 8 to ", kAddLayerNormMaxChannels, ", got ", channels);
  AddLayerNormRows& rows = in.params.shape;
  rows.channels = static_cast<int>(channels);
  rows.rows = x.numel() / channels;
  rows.rows_per_sample = batch > 0 ? rows.rows / batch : 1;
  rows.weight = keep(in, weight, x, channels, "weight");
  rows.drop_scale = drop_scale ? keep(in, *drop_scale, x, batch, "drop_scale") : nullptr;
}

inline AddLayerNormFwdInputs add_layer_norm_fwd_inputs(
    const torch::stable::Tensor& x, const torch::stable::Tensor& residual, const torch::stable::Tensor& weight,
    const torch::stable::Tensor& bias, const std::optional<torch::stable::Tensor>& drop_scale, double eps) {
  using torch::stable::new_empty;
  AddLayerNormFwdInputs in;
  AddLayerNormFwdParams& p = in.params;
  set_add_layer_norm_shape(in, x, weight, drop_scale);
  p.x = keep(in, x, x, x.numel(), "x");
  p.residual = keep(in, residual, x, x.numel(), "residual");
  p.bias = keep(in, bias, x, p.shape.channels, "bias");
  p.eps = eps;
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  auto& [y, out, mean, rstd] = in.outputs;
  y = new_empty(x, sizes);
  out = new_empty(x, sizes);
  sizes.pop_back();
  mean = new_empty(x, sizes, statistics_dtype(x));
  rstd = new_empty(x, sizes, statistics_dtype(x));
  p.y = y.mutable_data_ptr();
  p.out = out.mutable_data_ptr();
  p.mean = mean.mutable_data_ptr();
  p.rstd = rstd.mutable_data_ptr();
  return in;
}

inline AddLayerNormBwdInputs add_layer_norm_bwd_inputs(
    const torch::stable::Tensor& dout, const std::optional<torch::stable::Tensor>& dy, const torch::stable::Tensor& y,
    const torch::stable::Tensor& weight, const std::optional<torch::stable::Tensor>& drop_scale,
    const torch::stable::Tensor& mean, const torch::stable::Tensor& rstd) {
  using torch::stable::new_empty;
  AddLayerNormBwdInputs in;
  AddLayerNormBwdParams& p = in.params;
  set_add_layer_norm_shape(in, y, weight, drop_scale);
  p.y = keep(in, y, y, y.numel(), "y");
  p.dout = keep(in, dout, y, y.numel(), "dout");
  p.dy = dy ? keep(in, *dy, y, y.numel(), "dy") : nullptr;
  for (const torch::stable::Tensor* statistic : {&mean, &rstd}) {
    check_same_device("add_layer_norm", "mean and rstd", *statistic, "y", y);
    LGFAST_CHECK(statistic->numel() == p.shape.rows && statistic->is_contiguous() &&
                     statistic->scalar_type() == statistics_dtype(y),
                 "add_layer_norm", "mean and rstd must be those of the forward pass, ", p.shape.rows, " values, got ",
                 shape(*statistic), " ", toString(statistic->scalar_type()));
  }
  p.mean = mean.const_data_ptr();
  p.rstd = rstd.const_data_ptr();
  const std::vector<int64_t> sizes(y.sizes().begin(), y.sizes().end());
  auto& [dx, dresidual, dparams] = in.outputs;
  dx = drop_scale ? new_empty(y, sizes) : new_empty(y, {0});
  dresidual = new_empty(y, sizes);
  dparams = new_empty(y, {2, p.shape.channels});
  p.dx = dx.mutable_data_ptr();
  p.dresidual = dresidual.mutable_data_ptr();
  p.dparams = dparams.mutable_data_ptr();
  return in;
}

}  // namespace lgfast
