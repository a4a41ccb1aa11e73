// Checks and allocation of vit_block.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/packed.h"
#include "vit_block/vit_block.h"

namespace lgfast {

constexpr const char* kBlockParameterNames[] = {"norm1_weight", "norm1_bias", "qkv_weight",   "qkv_bias",
                                                "proj_weight",  "proj_bias",  "norm2_weight", "norm2_bias",
                                                "fc1_weight",   "fc1_bias",   "fc2_weight",   "fc2_bias"};

struct BlockInputs {
  BlockShape shape;
  torch::stable::Tensor x;
  std::vector<torch::stable::Tensor> parameters;  // packed
};

// out, qkv, lse, mixed, middle, hidden
using BlockOutputs = std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
                                torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>;

inline void check_block_tensor(const char* name, const torch::stable::Tensor& tensor, const torch::stable::Tensor& x,
                               int64_t numel) {
  constexpr const char* op = "vit_block";
  LGFAST_CHECK(tensor.scalar_type() == x.scalar_type() && tensor.numel() == numel, op, name, " must have ", numel,
               " elements of ", torch::headeronly::toString(x.scalar_type()), ", got ", shape(tensor), " ",
               torch::headeronly::toString(tensor.scalar_type()));
  check_same_device(op, name, tensor, "x", x);
}

inline BlockInputs block_inputs(const torch::stable::Tensor& x, const std::vector<torch::stable::Tensor>& parameters,
                                int64_t num_heads, double eps1, double eps2) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "vit_block";
  const ScalarType dtype = x.scalar_type();
  LGFAST_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, "x must be float32 or float64, got ",
               torch::headeronly::toString(dtype));
  LGFAST_CHECK(x.dim() == 3 && x.size(1) >= 1, op, "x must be [B, N, C] with tokens, got ", shape(x));
  const int64_t width = x.size(2), hidden = parameters[kFc1Bias].numel();
  LGFAST_CHECK(num_heads > 0 && width > 0 && width % (8 * num_heads) == 0, op,
               "each head must have a multiple of 8 channels, got ", num_heads, " heads of ", width, " channels");
  LGFAST_CHECK(hidden > 0 && hidden % 8 == 0, op, "the MLP's channels must be a multiple of 8, got ", hidden);
  BlockInputs in{{int(x.size(0)), int(x.size(1)), int(width), int(hidden), int(num_heads), eps1, eps2}, packed(x), {}};
  for (int i = 0; i < kNumBlockParameters; ++i) {
    check_block_tensor(kBlockParameterNames[i], parameters[i], x, in.shape.size(i));
    in.parameters.push_back(packed(parameters[i]));
  }
  return in;
}

inline BlockOutputs new_outputs(const BlockShape& s, const torch::stable::Tensor& like) {
  const auto rows = [&](int64_t columns) { return torch::stable::new_empty(like, {s.batch, s.tokens, columns}); };
  return {rows(s.width),
          rows(3 * s.width),
          torch::stable::new_empty(like, {s.batch, s.heads, s.tokens}, torch::headeronly::ScalarType::Float),
          rows(s.width),
          rows(s.width),
          rows(s.hidden)};
}

inline void check_kept(const BlockInputs& in, const torch::stable::Tensor& dout, const torch::stable::Tensor& qkv,
                       const torch::stable::Tensor& lse, const torch::stable::Tensor& mixed,
                       const torch::stable::Tensor& middle, const torch::stable::Tensor& hidden) {
  const BlockShape& s = in.shape;
  const int64_t rows = int64_t(s.batch) * s.tokens, narrow = rows * s.width;
  check_block_tensor("dout", dout, in.x, narrow);
  check_block_tensor("qkv", qkv, in.x, 3 * narrow);
  check_block_tensor("mixed", mixed, in.x, narrow);
  check_block_tensor("middle", middle, in.x, narrow);
  check_block_tensor("hidden", hidden, in.x, rows * s.hidden);
  LGFAST_CHECK(lse.scalar_type() == torch::headeronly::ScalarType::Float && lse.numel() == rows * s.heads, "vit_block",
               "lse must be the float32 [B, H, N] of forward, got ", shape(lse));
}

}  // namespace lgfast
