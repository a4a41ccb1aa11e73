// Checks and allocation of bias_gelu, shared by the CPU and the CUDA entry points.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "bias_gelu/bias_gelu.h"
#include "common/check.h"
#include "common/packed.h"

namespace lgfast {

struct BiasGeluInputs {
  BiasGeluParams params{};
  std::vector<torch::stable::Tensor> kept;  // tensors that the pointers point into
  torch::stable::Tensor out, dbias;         // dx and dbias in backward; dbias empty in forward
};

inline BiasGeluInputs bias_gelu_inputs(const torch::stable::Tensor& x, const torch::stable::Tensor& bias,
                                       const std::optional<torch::stable::Tensor>& dout) {
  constexpr const char* op = "bias_gelu";
  LGFAST_CHECK(x.dim() >= 2, op, "x must be [B, ..., C], got ", shape(x));
  const int64_t channels = x.size(x.dim() - 1);
  LGFAST_CHECK(channels > 0 && channels % 8 == 0, op, "channels must be a multiple of 8, got ", channels);
  LGFAST_CHECK(bias.dim() == 1 && bias.numel() == channels && bias.scalar_type() == x.scalar_type(), op,
               "bias must be [", channels, "] ", toString(x.scalar_type()), ", got ", shape(bias), " ",
               toString(bias.scalar_type()));
  check_same_device(op, "bias", bias, "x", x);
  BiasGeluInputs in;
  BiasGeluParams& p = in.params;
  p.rows = x.numel() / channels;
  p.channels = static_cast<int>(channels);
  const std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  in.kept = {packed(x), packed(bias)};
  in.out = torch::stable::new_empty(x, sizes);
  in.dbias = torch::stable::new_empty(x, {dout ? channels : 0});
  if (dout) {
    LGFAST_CHECK(dout->numel() == x.numel() && dout->scalar_type() == x.scalar_type(), op, "dout must be ", shape(x),
                 " ", toString(x.scalar_type()), ", got ", shape(*dout), " ", toString(dout->scalar_type()));
    check_same_device(op, "dout", *dout, "x", x);
    in.kept.push_back(packed(*dout));
    p.dout = in.kept[2].const_data_ptr();
  }
  p.x = in.kept[0].const_data_ptr();
  p.bias = in.kept[1].const_data_ptr();
  p.out = in.out.mutable_data_ptr();
  p.dbias = in.dbias.mutable_data_ptr();
  return in;
}

}  // namespace lgfast
