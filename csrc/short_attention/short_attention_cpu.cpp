// short_attention on the CPU: forward and backward go head by head, so that a head's matrices stay in a core's cache.
//
// A work unit is one head of one image. A unit writes only its own part of the result, so the result depends neither on
// the thread count nor on the batch. Two headers hold a forward and a backward pass each, of the same form:
// short_attention_cpu_float.h for every element type, and short_attention_cpu_bf16.h for bfloat16 with an even head
// dim, on processors that multiply it.
#include <torch/csrc/stable/library.h>

#include <type_traits>

#include "common/dispatch.h"
#include "short_attention/short_attention_cpu_bf16.h"
#include "short_attention/short_attention_cpu_float.h"
#include "short_attention/short_attention_entry.h"

namespace lgfast {
namespace {

using torch::stable::Tensor;

// Calls Pass(params, head_dim)(batch, head) for every head of every image, in parallel.
template <typename Pass, typename Params>
void for_each_head(const Params& params, int head_dim) {
  const int64_t units = int64_t(params.batch) * params.heads;
  torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    Pass pass(params, head_dim);
    for (int64_t unit = begin; unit < end; ++unit) pass(int(unit / params.heads), int(unit % params.heads));
  });
}

template <template <typename> class Pass, typename Bf16Pass, typename Params>
void run_pass(const Params& params, const Tensor& q, int head_dim) {
  if (params.batch == 0 || params.heads == 0) return;
  dispatch_float("short_attention", q.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
#if defined(LGFAST_CPU_LEVELS)
    if constexpr (std::is_same_v<T, bf16>)
      if (head_dim % 2 == 0 && cpu_level() == CpuLevel::kBf16) return for_each_head<Bf16Pass>(params, head_dim);
#endif
    for_each_head<Pass<T>>(params, head_dim);
  });
}

struct Cpu {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  static Tensor readable(const Tensor& tensor) {
    return tensor.stride(-1) == 1 ? tensor : torch::stable::contiguous(tensor);
  }

  static void run(const ShortAttentionFwdParams& params, const Tensor& q, const AttentionShape& s) {
    run_pass<Forward, Bf16Forward>(params, q, s.head_dim);
  }

  static void run(const ShortAttentionBwdParams& params, const Tensor& q, const AttentionShape& s) {
    run_pass<Backward, Bf16Backward>(params, q, s.head_dim);
  }
};

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CPU, m) {
  m.impl("short_attention_fwd", TORCH_BOX(&lgfast::ShortAttention<lgfast::Cpu>::fwd));
  m.impl("short_attention_bwd", TORCH_BOX(&lgfast::ShortAttention<lgfast::Cpu>::bwd));
  m.impl("short_attention_qkvpacked_fwd", TORCH_BOX(&lgfast::ShortAttention<lgfast::Cpu>::qkvpacked_fwd));
  m.impl("short_attention_qkvpacked_bwd", TORCH_BOX(&lgfast::ShortAttention<lgfast::Cpu>::qkvpacked_bwd));
}
