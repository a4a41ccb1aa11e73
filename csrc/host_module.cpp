// The Python side of lgfast._C: tells what was built and how the kernels split their work. No torch headers here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "augment/augment_layout.h"
#include "common/cpu_level.h"
#include "feature_mse/feature_mse.h"
#include "short_attention/short_attention_limits.h"

namespace py = pybind11;

namespace {

int augment_largest_side(int image_size, int resample) {
  return lgfast::largest_augment_side(image_size, static_cast<lgfast::Resample>(resample));
}

py::dict feature_mse_plan(int channels, int student_h, int student_w, int teacher_h, int teacher_w, int element_bytes,
                          int max_smem) {
  lgfast::FeatureMseParams params{};
  params.num_pairs = 1;
  lgfast::FeatureMsePair& pair = params.pairs[0];
  pair.channels = channels;
  pair.student_h = student_h, pair.student_w = student_w;
  pair.teacher_h = teacher_h, pair.teacher_w = teacher_w;
  lgfast::complete_feature_mse_pair(pair, 1, 1.0);
  if (!lgfast::plan_feature_mse(params, 1, element_bytes, max_smem))
    throw py::value_error("one channel exceeds a block");
  py::dict plan;
  plan["channels_per_block"] = 1 << params.cuts[0].slab_log2;
  plan["blocks_per_image"] = params.first_unit[1];
  plan["threads"] = params.threads;
  plan["smem_bytes"] = params.smem_bytes;
  return plan;
}

const char* cpu_level() { return lgfast::kCpuLevelNames[int(lgfast::cpu_level())]; }

std::vector<std::string> cpu_levels() {
  return {lgfast::kCpuLevelNames, lgfast::kCpuLevelNames + int(lgfast::highest_cpu_level()) + 1};
}

void hold_cpu_level(const std::string& name) {
  const std::vector<std::string> levels = cpu_levels();
  const auto found = std::find(levels.begin(), levels.end(), name);
  if (found == levels.end()) throw py::value_error("not a level of this processor: " + name);
  lgfast::held_cpu_level = lgfast::CpuLevel(found - levels.begin());
}

py::dict build_info() {
  py::dict info;
  info["torch"] = LGFAST_TORCH_VERSION;  // headers compiled against
  info["torch_minimum"] = "2.11";        // stable ABI version targeted
  info["compiler"] = __VERSION__;
  return info;
}

py::dict short_attention_plan(int batch_heads, int num_queries, int num_keys, int head_dim, int max_smem, bool has_bias,
                              int multiprocessors, bool has_wgmma) {
  if (const auto refusal = lgfast::short_attention_refusal(num_queries, num_keys, head_dim, max_smem); !refusal.empty())
    throw py::value_error("short_attention: " + refusal);
  const auto fwd = lgfast::plan_short_attention_fwd(batch_heads, num_queries, num_keys, head_dim, multiprocessors,
                                                    max_smem, has_wgmma);
  const auto bwd = lgfast::plan_short_attention_bwd(num_queries, num_keys, head_dim, has_bias, max_smem, has_wgmma);
  py::dict fwd_plan, bwd_plan, plan;
  fwd_plan["wgmma"] = fwd.wgmma;
  fwd_plan["row_capacity"] = fwd.row_capacity;
  fwd_plan["warps"] = fwd.warps;
  fwd_plan["rows_per_warp"] = fwd.rows_per_warp;
  fwd_plan["key_rows"] = fwd.key_rows;
  fwd_plan["blocks"] = fwd.blocks;
  fwd_plan["smem_bytes"] = fwd.smem_bytes;
  bwd_plan["wgmma"] = bwd.wgmma;
  bwd_plan["resident"] = bwd.resident;
  bwd_plan["warps"] = bwd.warps;
  bwd_plan["key_rows"] = bwd.key_rows;
  bwd_plan["query_rows"] = bwd.query_rows;
  bwd_plan["parts"] = bwd.parts;
  bwd_plan["blocks"] = bwd.resident ? std::min(batch_heads, multiprocessors) : batch_heads;
  bwd_plan["smem_bytes"] = bwd.smem_bytes;
  plan["fwd"] = fwd_plan;
  plan["bwd"] = bwd_plan;
  return plan;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native host module of lgfast: build information and kernel plans.";
  m.def("build_info", &build_info, "The compiler and the torch headers that this library was built with.");
  m.def("cpu_level", &cpu_level, "The level of instructions that CPU kernels use.");
  m.def("cpu_levels", &cpu_levels, "Those that the processor and this build have, the lowest first.");
  m.def("hold_cpu_level", &hold_cpu_level, py::arg("name"), "Makes CPU kernels use one of cpu_levels().");
  m.def(
      "augment_largest_side", &augment_largest_side, py::arg("image_size"), py::arg("resample"),
      "The longest side of images that augment can reduce to image_size; resample: 0 nearest, 1 bilinear, 2 bicubic.");
  m.def("feature_mse_plan", &feature_mse_plan, py::arg("channels"), py::arg("student_h"), py::arg("student_w"),
        py::arg("teacher_h"), py::arg("teacher_w"), py::arg("element_bytes") = 4,
        py::arg("max_smem") = lgfast::kFeatureMseMaxSmem,
        "How feature_mse's kernel cuts one pair: channels and threads of a block, blocks, shared memory.");
  m.def(
      "short_attention_plan", &short_attention_plan, py::arg("batch_heads"), py::arg("num_queries"),
      py::arg("num_keys"), py::arg("head_dim"), py::arg("max_smem"), py::arg("has_bias") = false,
      py::arg("multiprocessors") = 132, py::arg("has_wgmma") = false,
      "How short_attention's kernels cut a shape on a GPU whose block can have max_smem bytes of shared memory: warps, "
      "rows in shared memory, blocks, shared memory in bytes. has_wgmma: it multiplies by warpgroups, as 9.0 does. "
      "ValueError where no kernel takes it.");
  m.def("short_attention_refusal", &lgfast::short_attention_refusal, py::arg("num_queries"), py::arg("num_keys"),
        py::arg("head_dim"), py::arg("max_smem"), "Why no kernel of short_attention takes a shape there, or ''.");
  m.attr("SHORT_ATTENTION_SMEM_FOR_EVERY_SHAPE") = lgfast::short_attention_smem_for_every_shape();
}
