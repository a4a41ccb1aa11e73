// short_attention on the GPU, torch side: device guard, limits, launch on the current stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "common/cuda_stream.h"
#include "common/float16.h"
#include "common/gpu.h"
#include "common/packed.h"
#include "short_attention/short_attention_entry.h"
#include "short_attention/short_attention_limits.h"

namespace lgfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

constexpr const char* kOp = "short_attention";

void check_limits(const AttentionShape& s, ScalarType dtype) {
  LGFAST_CHECK(dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, kOp,
               "dtype must be bfloat16 or float16, got ", toString(dtype));
  const std::string refusal = short_attention_refusal(s.queries, s.keys, s.head_dim, gpu_smem_bytes());
  LGFAST_CHECK(refusal.empty(), kOp, refusal);
}

// Calls launcher(T{}, head dim as a constant).
template <typename F>
void dispatch(ScalarType dtype, int head_dim, const F& launcher) {
  const auto with_dim = [&](auto zero) {
    switch (head_dim) {
      case 32: return launcher(zero, std::integral_constant<int, 32>{});
      case 48: return launcher(zero, std::integral_constant<int, 48>{});
      default: return launcher(zero, std::integral_constant<int, 64>{});
    }
  };
  const char* error = dtype == ScalarType::BFloat16 ? with_dim(bf16{}) : with_dim(fp16{});
  LGFAST_CHECK(!error, kOp, error);
}

template <typename T, int kHeadDim>
const char* launch_pass(const ShortAttentionFwdParams& params, void* stream) {
  return launch_short_attention_fwd<T, kHeadDim>(params, stream);
}
template <typename T, int kHeadDim>
const char* launch_pass(const ShortAttentionBwdParams& params, void* stream) {
  return launch_short_attention_bwd<T, kHeadDim>(params, stream);
}

struct Cuda {
  struct Guard : DeviceGuard {
    explicit Guard(const Tensor& q) : DeviceGuard(q.get_device_index()) {}
  };

  // The kernels read 16 bytes at a time along D; anything else is copied first.
  static Tensor readable(const Tensor& tensor) {
    bool is_aligned = tensor.stride(-1) == 1 && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
    for (int64_t i = 0; i + 1 < tensor.dim(); ++i) is_aligned = is_aligned && tensor.stride(i) % 8 == 0;
    return is_aligned ? tensor : packed(tensor);
  }

  template <typename Params>
  static void run(const Params& params, const Tensor& q, const AttentionShape& s) {
    check_limits(s, q.scalar_type());
    if (s.batch == 0 || s.heads == 0) return;
    void* stream = current_cuda_stream(q.get_device_index());
    dispatch(q.scalar_type(), s.head_dim,
             [&](auto zero, auto dim) { return launch_pass<decltype(zero), decltype(dim)::value>(params, stream); });
  }
};

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CUDA, m) {
  m.impl("short_attention_fwd", TORCH_BOX(&lgfast::ShortAttention<lgfast::Cuda>::fwd));
  m.impl("short_attention_bwd", TORCH_BOX(&lgfast::ShortAttention<lgfast::Cuda>::bwd));
  m.impl("short_attention_qkvpacked_fwd", TORCH_BOX(&lgfast::ShortAttention<lgfast::Cuda>::qkvpacked_fwd));
  m.impl("short_attention_qkvpacked_bwd", TORCH_BOX(&lgfast::ShortAttention<lgfast::Cuda>::qkvpacked_bwd));
}
