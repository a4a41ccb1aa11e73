// augment_plan and augment on the CPU. Threads share the images of a batch; one thread makes the whole of an image.
//
// The file is compiled without contraction of a * b + c, as Pillow is: all levels give the same bytes.
#include <torch/csrc/stable/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <memory>
#include <tuple>

#include "augment/augment_image.h"
#include "augment/augment_inputs.h"
#include "augment/augment_plan.h"
#include "common/vectorize.h"

namespace lgfast {
namespace {

using torch::stable::Tensor;

// One thread: loops run in order, and there is nobody to wait for.
struct ThreadTeam {
  static constexpr bool kIsWhole = true;
  static constexpr int kSize = 0;
  static constexpr int kStrip = 32;
  static constexpr bool kSplitsChannels = true;
  static constexpr int kHeldRows = 0;
  static constexpr int kAffinePixels = kStrip;
  template <typename Strip>
  using Read = const Strip&;  // a copy on the stack would be written in halves and read whole: 20 cycles a strip
  void meet() const {}
  template <typename F>
  void each_ahead(int n, const F& f) const {
    for (int i = 0; i < n; ++i) f(i);
  }
  template <typename F>
  void each(int n, const F& f) const {
    each_ahead(n, f);
  }
  template <typename F>
  void grid(int rows, int columns, const F& f) const {
    for (int y = 0; y < rows; ++y)
      for (int x = 0; x < columns; ++x) f(y, x);
  }
  void add(uint32_t* counter, uint32_t value) const { *counter += value; }
  void add_to_total(uint32_t* total, uint32_t value) const { *total += value; }
  template <typename Strip>
  void pack(const int (&sum)[kStrip], Strip& strip) const {
    for (int l = 0; l < kStrip; ++l) strip.value[l] = from_fixed(sum[l]);
  }
  template <typename T, typename F>
  void write(T* out, const F& value) const {
    for (int l = 0; l < kStrip; ++l) out[l] = value(l);
  }
};

void augment_images(const AugmentParams& params, AugmentDtype dtype, unsigned char* memory, int64_t begin,
                    int64_t end) {
  const ThreadTeam team;
  const AugmentLayout layout = augment_layout(params.image_size);
  WorkingImage<ThreadTeam> image(team, params, layout, memory);
  for (int64_t b = begin; b < end; ++b) {
    switch (dtype) {
      case AugmentDtype::kFloat: augment_image<float>(image, b); break;
      case AugmentDtype::kBFloat16: augment_image<bf16>(image, b); break;
      case AugmentDtype::kHalf: augment_image<fp16>(image, b); break;
    }
  }
}

// Asks the system for 2 MiB pages behind a fresh allocation; without them it takes 0.3 ms an image to map small ones.
void advise_huge_pages(void* data, int64_t num_bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + num_bytes) & ~(kHugePage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// The kernel trusts the plan; a plan may come from anywhere, so its rectangles are checked here.
void check_plan_row(const AugmentParams& p, int64_t num_images, int64_t num_bytes, int64_t b) {
  const int64_t index = p.indices[b];
  LGFAST_CHECK(index >= 0 && index < num_images, "augment", "indices must lie in [0, ", num_images, "), got ", index);
  const double* row = p.plan + b * p.num_columns;
  const int64_t height = p.sizes[2 * index], width = p.sizes[2 * index + 1], offset = p.offsets[index];
  LGFAST_CHECK(offset >= 0 && offset + height * width * 3 <= num_bytes, "augment", "image ", index, " (", height, "x",
               width, " at byte ", offset, ") must lie inside pixels, which has ", num_bytes, " bytes");
  LGFAST_CHECK(row[kCropTop] >= 0 && row[kCropLeft] >= 0 && row[kCropHeight] >= 1 && row[kCropWidth] >= 1 &&
                   row[kCropTop] + row[kCropHeight] <= height && row[kCropLeft] + row[kCropWidth] <= width,
               "augment", "the crop in row ", b, " of plan must lie inside its image (", height, "x", width, ")");
  LGFAST_CHECK(row[kEraseTop] >= 0 && row[kEraseLeft] >= 0 && row[kEraseHeight] >= 0 && row[kEraseWidth] >= 0 &&
                   row[kEraseTop] + row[kEraseHeight] <= p.image_size &&
                   row[kEraseLeft] + row[kEraseWidth] <= p.image_size,
               "augment", "the erased rectangle in row ", b, " of plan must lie inside the output");
  LGFAST_CHECK(crop_fits(augment_layout(p.image_size), p.resample, int(row[kCropHeight]), int(row[kCropWidth])),
               "augment", "a crop of ", row[kCropHeight], "x", row[kCropWidth], " is too large to reduce to ",
               p.image_size, "; store smaller images");
}

std::tuple<Tensor, Tensor> augment(const Tensor& pixels, const Tensor& offsets, const Tensor& sizes,
                                   const Tensor& indices, const Tensor& plan, int64_t image_size, int64_t teacher_size,
                                   int64_t resample, int64_t erase_mode, const std::vector<int64_t>& fill,
                                   const std::vector<double>& mean, const std::vector<double>& std, ScalarType dtype,
                                   bool channels_last) {
  const AugmentCall call = augment_call(pixels, offsets, sizes, indices, plan, image_size, teacher_size, resample,
                                        erase_mode, fill, mean, std, dtype, channels_last);
  for (int64_t b = 0; b < call.params.batch; ++b) check_plan_row(call.params, sizes.size(0), pixels.numel(), b);
  advise_huge_pages(call.params.images, call.images.numel() * call.images.element_size());
  const auto num_bytes = size_t(augment_layout(int(image_size)).num_bytes);
  torch::stable::parallel_for(0, call.params.batch, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(128, num_bytes), &std::free);
    at_level<augment_images>(call.params, call.dtype, static_cast<unsigned char*>(memory.get()), begin, end);
  });
  return {call.images, call.teacher_images};
}

Tensor augment_plan(const Tensor& sizes, const Tensor& indices, const Tensor& counter, int64_t image_size,
                    bool whole_image, const std::vector<double>& crop_scale, const std::vector<double>& crop_ratio,
                    double flip_prob, int64_t max_shift, double erase_prob, int64_t num_ops, double op_prob,
                    double magnitude, double magnitude_std, double magnitude_max, bool increasing,
                    double vertical_flip_prob, int64_t policy, const std::vector<double>& jitter) {
  const AugmentPlanCall call = augment_plan_call(
      sizes, indices, counter, image_size, whole_image, crop_scale, crop_ratio, flip_prob, max_shift, erase_prob,
      num_ops, op_prob, magnitude, magnitude_std, magnitude_max, increasing, vertical_flip_prob, policy, jitter);
  torch::stable::parallel_for(0, call.params.batch, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) draw_plan_row(call.params, b);
  });
  return call.plan;
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CPU, m) {
  m.impl("augment_plan", TORCH_BOX(&lgfast::augment_plan));
  m.impl("augment", TORCH_BOX(&lgfast::augment));
}
