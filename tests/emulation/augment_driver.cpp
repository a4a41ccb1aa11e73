// Runs augment and augment_plan in the emulation; see driver.h.
//
// Request: the Header; then pixels, offsets, sizes, indices and plan for augment, and the counter for augment_plan.
// Images are taken in the order of augment_order.cuh, and those in a workspace are divided into as many parts as it
// says for a GPU of so many blocks at once. augment_plan draws with the recipe's settings, or with another policy and
// colour jitter. Result: images, teacher_images (both channels-first), the parts [1 + 8 B], sorted by row, then a plan
// drawn for the same indices with the sizes of their images.
#include <algorithm>
#include <tuple>

#include "augment/augment.cuh"
#include "augment/augment_order.cuh"
#include "augment/augment_plan.cuh"
#include "driver.h"

namespace {

using namespace lgfast;
using namespace lgfast::emulation;

struct Header {
  int64_t num_bytes, num_images, batch, num_columns, image_size, teacher_size, resample, erase_mode;
  int64_t threads, blocks, uses_workspace, blocks_at_once, dtype, seeds, policy;
};

struct Case {
  Header header;
  std::vector<uint8_t> pixels;
  std::vector<int64_t> offsets;
  std::vector<int32_t> sizes;
  std::vector<int64_t> indices;
  std::vector<double> plan;
  std::vector<int64_t> counter;
};

Case read_case(Request& request) {
  const Header h = request.read<Header>();
  return {h,
          request.read<uint8_t>(h.num_bytes),
          request.read<int64_t>(h.num_images),
          request.read<int32_t>(2 * h.num_images),
          request.read<int64_t>(h.batch),
          request.read<double>(h.batch * h.num_columns),
          request.read<int64_t>(2)};
}

AugmentParams make_params(const Case& c, Bytes& images, Bytes& teacher) {
  const Header& h = c.header;
  AugmentParams p{};
  p.pixels = c.pixels.data();
  p.offsets = c.offsets.data();
  p.sizes = c.sizes.data();
  p.indices = c.indices.data();
  p.plan = c.plan.data();
  p.images = images.data();
  p.teacher = teacher.data();
  p.batch = h.batch;
  p.num_columns = int(h.num_columns);
  p.image_size = int(h.image_size);
  p.teacher_size = int(h.teacher_size);
  p.channel_stride = h.image_size * h.image_size;
  p.row_stride = h.image_size;
  p.column_stride = 1;
  p.teacher_channel_stride = h.teacher_size * h.teacher_size;
  p.teacher_row_stride = h.teacher_size;
  p.teacher_column_stride = 1;
  p.resample = static_cast<Resample>(h.resample);
  p.erase_mode = static_cast<EraseMode>(h.erase_mode);
  const int fill[3] = {124, 116, 104};
  const float mean[3] = {0.485f, 0.456f, 0.406f}, std[3] = {0.229f, 0.224f, 0.225f};
  for (int k = 0; k < 3; ++k) {
    p.fill[k] = fill[k];
    p.mean[k] = mean[k];
    p.std[k] = std[k];
  }
  return p;
}

AugmentPlanParams make_plan_params(const Case& c, const std::vector<int32_t>& sizes) {
  AugmentPlanParams p{};
  p.sizes = sizes.data();
  p.indices = c.indices.data();
  p.counter = c.counter.data();
  p.batch = c.header.batch;
  p.policy = static_cast<AugmentPolicy>(c.header.policy);
  const bool is_recipe = p.policy == AugmentPolicy::kRandAugment;
  const double jitter[kNumJitterOps] = {0.4, 0.3, 0.2, 0.1};
  for (int k = 0; k < kNumJitterOps && !is_recipe; ++k) p.jitter[k] = jitter[k];
  p.num_ops = is_recipe ? 2 : 1;
  p.num_columns = kFirstOp + 2 * (p.num_ops + num_jitter_ops(p.jitter));
  p.image_size = int(c.header.image_size);
  p.crop_scale[0] = 0.08;
  p.crop_scale[1] = 1.0;
  p.crop_ratio[0] = 3.0 / 4.0;
  p.crop_ratio[1] = 4.0 / 3.0;
  p.flip_prob = 0.5;
  p.vertical_flip_prob = 0.25;
  p.erase_prob = 0.25;
  p.op_prob = 0.5;
  p.magnitude = 9;
  p.magnitude_std = 0.5;
  p.magnitude_max = 10;
  p.increasing = true;
  return p;
}

template <typename T>
std::vector<Bytes> run(const Case& c) {
  const Header& h = c.header;
  const auto view_bytes = [&](int64_t size) { return h.batch * 3 * size * size * int64_t(sizeof(T)); };
  Bytes images = poisoned(view_bytes(h.image_size)), teacher = poisoned(view_bytes(h.teacher_size));
  const int64_t block_bytes = augment_layout(int(h.image_size)).num_bytes;
  Bytes workspace = poisoned(h.uses_workspace ? block_bytes * h.blocks : 0);
  Bytes moved = poisoned(h.uses_workspace ? moved_bytes_of(int(h.image_size), sizeof(T)) * h.blocks : 0);
  AugmentParams augment_params = make_params(c, images, teacher);
  AugmentLaunch launch{};
  launch.blocks = int(h.blocks);
  launch.blocks_at_once = int(h.blocks_at_once);
  launch.max_parts = h.uses_workspace ? most_parts(int(h.image_size), int(h.teacher_size)) : 1;
  launch.smem_bytes = h.uses_workspace ? 0 : int(block_bytes);
  Bytes parts = poisoned((h.batch * kMaxImageParts + 1) * int64_t(sizeof(AugmentPart)));
  check(launch_augment_order_kernel(augment_params, launch, data_of<AugmentPart>(parts), nullptr));
  augment_params.parts = data_of<AugmentPart>(parts);
  const auto kernel = h.uses_workspace ? augment_kernel<T, false, 0> : augment_kernel<T, true, 0>;  // of any size
  check(lgfast::launch(kernel, Grid{launch.blocks, 1}, int(h.threads), launch.smem_bytes, nullptr, augment_params,
                       augment_layout(int(h.image_size)), workspace.data(), moved.data()));
  AugmentPart* listed = data_of<AugmentPart>(parts);  // images that cost the same lie in any order
  std::sort(listed + 1, listed + 1 + listed->row, [](const AugmentPart& a, const AugmentPart& b) {
    return std::tie(a.row, a.part) < std::tie(b.row, b.part);
  });
  std::vector<int32_t> sizes;
  for (const int64_t index : c.indices) {
    sizes.push_back(c.sizes[size_t(2 * index)]);
    sizes.push_back(c.sizes[size_t(2 * index + 1)]);
  }
  AugmentPlanParams params = make_plan_params(c, sizes);
  Bytes plan = poisoned(h.batch * params.num_columns * int64_t(sizeof(double)));
  params.plan = data_of<double>(plan);
  check(launch_augment_plan_kernel(params, nullptr));
  return {images, teacher, parts, plan};
}

}  // namespace

int main(int argc, char** argv) {
  return drive(argc, argv, [](Request& request) {
    const Case c = read_case(request);
    return run_seeds(c.header.seeds, [&] {
      return dispatch<float, bf16>(c.header.dtype, [&](auto zero) { return run<decltype(zero)>(c); });
    });
  });
}
