// Runs augment and augment_plan in the emulation. Usage: augment_driver REQUEST RESULT
//
// Request: the Header; then pixels, offsets, sizes, indices and plan of augment, and counter, for augment_plan, which
// uses the recipe's policy. The case runs once per seed; all runs must agree bit for bit. Result: images,
// teacher_images (both channels-first), then a plan drawn for the same indices with the sizes of their images.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "augment/augment.cuh"

namespace {

using namespace lgfast;

struct Header {
  int64_t num_bytes, num_images, batch, num_columns, image_size, teacher_size, resample, erase_mode;
  int64_t threads, blocks, uses_workspace, is_half, seeds;
};

struct Case {
  Header header;
  std::vector<uint8_t> pixels;
  std::vector<int64_t> offsets, indices, counter;
  std::vector<int32_t> sizes;
  std::vector<double> plan;
};

struct Result {
  std::vector<uint8_t> images, teacher;
  std::vector<double> plan;
  bool operator==(const Result& other) const {
    return images == other.images && teacher == other.teacher && plan == other.plan;
  }
};

[[noreturn]] void stop(const char* text) {
  std::fprintf(stderr, "augment_driver: %s\n", text);
  std::exit(1);
}

template <typename T>
void read(std::FILE* file, std::vector<T>& values, int64_t count) {
  values.resize(size_t(count));
  if (count && std::fread(values.data(), sizeof(T), values.size(), file) != values.size()) stop("request too short");
}

template <typename T>
void write(std::FILE* file, const std::vector<T>& values) {
  if (!values.empty() && std::fwrite(values.data(), sizeof(T), values.size(), file) != values.size()) stop("no space");
}

Case read_case(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (!file) stop("no request");
  std::vector<Header> header;
  read(file, header, 1);
  Case c{header[0], {}, {}, {}, {}, {}, {}};
  const Header& h = c.header;
  read(file, c.pixels, h.num_bytes);
  read(file, c.offsets, h.num_images);
  read(file, c.sizes, 2 * h.num_images);
  read(file, c.indices, h.batch);
  read(file, c.plan, h.batch * h.num_columns);
  read(file, c.counter, 2);
  std::fclose(file);
  return c;
}

AugmentParams params_of(const Case& c, Result& result) {
  const Header& h = c.header;
  AugmentParams p{};
  p.pixels = c.pixels.data();
  p.offsets = c.offsets.data();
  p.sizes = c.sizes.data();
  p.indices = c.indices.data();
  p.plan = c.plan.data();
  p.images = result.images.data();
  p.teacher = result.teacher.data();
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

AugmentPlanParams plan_params_of(const Case& c, const std::vector<int32_t>& sizes, Result& result) {
  AugmentPlanParams p{};
  p.sizes = sizes.data();
  p.indices = c.indices.data();
  p.counter = c.counter.data();
  p.plan = result.plan.data();
  p.batch = c.header.batch;
  p.num_columns = kFirstOp + 4;
  p.image_size = int(c.header.image_size);
  p.crop_scale[0] = 0.08;
  p.crop_scale[1] = 1.0;
  p.crop_ratio[0] = 3.0 / 4.0;
  p.crop_ratio[1] = 4.0 / 3.0;
  p.flip_prob = 0.5;
  p.erase_prob = 0.25;
  p.num_ops = 2;
  p.op_prob = 0.5;
  p.magnitude = 9;
  p.magnitude_std = 0.5;
  p.magnitude_max = 10;
  p.increasing = true;
  return p;
}

Result run(const Case& c) {
  const Header& h = c.header;
  const int64_t bytes = h.is_half ? 2 : 4;
  Result result;
  result.images.resize(size_t(h.batch * 3 * h.image_size * h.image_size * bytes));
  result.teacher.resize(size_t(h.batch * 3 * h.teacher_size * h.teacher_size * bytes));
  result.plan.resize(size_t(h.batch * (kFirstOp + 4)));
  const int64_t block_bytes = augment_layout(int(h.image_size)).num_bytes;
  AugmentLaunch launch{int(h.blocks), int(block_bytes), 0};
  std::vector<unsigned char> workspace;
  if (h.uses_workspace) {
    launch.smem_bytes = 0;
    workspace.resize(size_t(block_bytes * h.blocks), 0x7f);
  }
  unsigned char* memory = h.uses_workspace ? workspace.data() : nullptr;
  const AugmentParams params = params_of(c, result);
  const char* error = h.is_half ? launch_augment_kernel<bf16>(params, launch, int(h.threads), memory, nullptr)
                                : launch_augment_kernel<float>(params, launch, int(h.threads), memory, nullptr);
  if (error) stop(error);
  std::vector<int32_t> sizes;
  for (const int64_t index : c.indices) {
    sizes.push_back(c.sizes[size_t(2 * index)]);
    sizes.push_back(c.sizes[size_t(2 * index + 1)]);
  }
  if ((error = launch_augment_plan_kernel(plan_params_of(c, sizes, result), nullptr))) stop(error);
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) stop("usage: augment_driver REQUEST RESULT");
  const Case c = read_case(argv[1]);
  emulation::set_seed(0);
  const Result first = run(c);
  for (int64_t seed = 1; seed < c.header.seeds; ++seed) {
    emulation::set_seed(uint64_t(seed));
    if (!(run(c) == first)) stop("the result depends on the order of threads: a race");
  }
  std::FILE* file = std::fopen(argv[2], "wb");
  if (!file) stop("cannot write the result");
  write(file, first.images);
  write(file, first.teacher);
  write(file, first.plan);
  return std::fclose(file);
}
