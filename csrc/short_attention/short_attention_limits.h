// Says why short_attention's kernels do not take a shape, in the words of unsupported_shape_reason in
// lgfast/ops/short_attention.py.
#pragma once

#include <string>

#include "short_attention/short_attention_plan.h"

namespace lgfast {

constexpr int kUnlimitedSmem = 1 << 30;  // for the CPU's kernels, which use none

// Returns why the kernels, forward or backward, do not take a shape on a GPU whose blocks can have `max_smem` bytes of
// shared memory; "" where they take it.
inline std::string short_attention_refusal(int num_queries, int num_keys, int head_dim, int max_smem = kUnlimitedSmem) {
  const auto text = [](int number) { return std::to_string(number); };
  if (head_dim != 32 && head_dim != 48 && head_dim != 64) return "head dim must be 32, 48 or 64, got " + text(head_dim);
  if (num_queries < 1 || num_keys < 1)
    return "there must be queries and keys, got " + text(num_queries) + " and " + text(num_keys);
  if (num_keys > kMaxSequence) return "at most " + text(kMaxSequence) + " keys, got " + text(num_keys);
  const int most = num_keys <= kFewKeys ? kMaxQueriesFewKeys : kMaxSequence;
  if (num_queries > most)
    return "at most " + text(most) + " queries for " + text(num_keys) + " keys, got " + text(num_queries);
  const int needed = short_attention_needed_smem(num_queries, num_keys, head_dim);
  if (needed > max_smem)
    return text(num_queries) + " queries and " + text(num_keys) + " keys need " + text(ceil_div(needed, 1024)) +
           " KB of shared memory a block, of which the GPU gives " + text(max_smem / 1024);
  return "";
}

}  // namespace lgfast
