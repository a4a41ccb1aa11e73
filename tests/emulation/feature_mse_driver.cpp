// Runs one case of feature_mse in the emulation. Usage: feature_mse_driver REQUEST RESULT
//
// Request: the Header, the PairHeaders, then for each pair the elements of student and of teacher. The case runs once
// per seed; all runs must agree bit for bit. Result: the loss, then the flat gradient, both before and after the
// backward kernel has multiplied it by dloss * scale.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "feature_mse/feature_mse.cuh"

namespace {

using namespace lgfast;

struct Header {
  int64_t batch, num_pairs, seeds, element_bytes, is_bf16;
  double grad_scale, dloss, scale;
};

struct PairHeader {
  int64_t channels, student_h, student_w, teacher_h, teacher_w;
  int64_t student_numel, student_image_stride, student_token_stride;
  int64_t teacher_numel, teacher_image_stride, teacher_row_stride, teacher_column_stride;
};

// Heap blocks of exactly the tensors' sizes, so that AddressSanitizer sees every access outside them.
template <typename T>
struct Case {
  std::vector<PairHeader> headers;
  std::vector<std::vector<T>> student, teacher;
  std::vector<T> grad, scaled;
  typename Accumulate<T>::type loss;
};

template <typename T>
void read(std::FILE* file, T* values, size_t count) {
  if (std::fread(values, sizeof(T), count, file) == count) return;
  std::fputs("short request\n", stderr);
  std::exit(2);
}

template <typename T>
Case<T> read_case(std::FILE* file, const Header& header) {
  Case<T> c{};
  c.headers.resize(size_t(header.num_pairs));
  read(file, c.headers.data(), c.headers.size());
  size_t grad_numel = 0;
  for (const PairHeader& pair : c.headers) {
    c.student.emplace_back(size_t(pair.student_numel));
    read(file, c.student.back().data(), c.student.back().size());
    c.teacher.emplace_back(size_t(pair.teacher_numel));
    read(file, c.teacher.back().data(), c.teacher.back().size());
    grad_numel += size_t(header.batch * pair.student_h * pair.student_w * pair.channels);
  }
  c.grad.assign(header.grad_scale == 0 ? 0 : grad_numel, Accumulate<T>::store(float(0.0 / 0.0)));
  c.scaled = c.grad;
  return c;
}

template <typename T>
FeatureMseParams make_params(const Header& header, Case<T>& c) {
  FeatureMseParams params{};
  params.num_pairs = int(header.num_pairs);
  T* grad = c.grad.empty() ? nullptr : c.grad.data();
  for (int k = 0; k < params.num_pairs; ++k) {
    const PairHeader& in = c.headers[size_t(k)];
    FeatureMsePair& p = params.pairs[k];
    p.student = c.student[size_t(k)].data();
    p.teacher = c.teacher[size_t(k)].data();
    p.grad = grad;
    p.channels = int(in.channels);
    p.student_h = int(in.student_h), p.student_w = int(in.student_w);
    p.teacher_h = int(in.teacher_h), p.teacher_w = int(in.teacher_w);
    p.student_image_stride = in.student_image_stride, p.student_token_stride = in.student_token_stride;
    p.teacher_image_stride = in.teacher_image_stride, p.teacher_row_stride = in.teacher_row_stride;
    p.teacher_column_stride = in.teacher_column_stride;
    complete_feature_mse_pair(p, header.batch, header.grad_scale);
    if (grad) grad += header.batch * in.student_h * in.student_w * in.channels;
  }
  return params;
}

template <typename T>
const char* run(const Header& header, Case<T>& c) {
  FeatureMseParams params = make_params(header, c);
  if (plan_feature_mse(params, header.batch, sizeof(c.loss), max_smem_bytes()) != 0) return "no plan";
  std::vector<double> partials(size_t(params.first_block[params.num_pairs]));
  params.partials = partials.data();
  const char* error = launch_feature_mse_fwd<T>(params, &c.loss, nullptr);
  if (error) return error;
  const typename Accumulate<T>::type dloss(header.dloss);
  return launch_feature_mse_bwd<T>(c.grad.data(), &dloss, c.scaled.data(), int64_t(c.grad.size()), header.scale,
                                   nullptr);
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename T>
int run_seeds(std::FILE* request, const Header& header, const char* result_path) {
  Case<T> initial = read_case<T>(request, header), first;
  for (int64_t seed = 0; seed < header.seeds; ++seed) {
    Case<T> c = initial;
    emulation::set_seed(uint64_t(seed));
    const char* error = run(header, c);
    if (error) return std::fprintf(stderr, "%s\n", error), 1;
    if (seed == 0) first = c;
    if (c.loss != first.loss || !same_bits(c.grad, first.grad) || !same_bits(c.scaled, first.scaled))
      return std::fprintf(stderr, "seed %d gives other bits than seed 0: a race\n", int(seed)), 3;
  }
  std::FILE* result = std::fopen(result_path, "wb");
  if (!result) return 2;
  std::fwrite(&first.loss, sizeof(first.loss), 1, result);
  if (!first.grad.empty()) std::fwrite(first.grad.data(), sizeof(T), first.grad.size(), result);
  if (!first.scaled.empty()) std::fwrite(first.scaled.data(), sizeof(T), first.scaled.size(), result);
  return std::fclose(result) == 0 ? 0 : 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::FILE* request = std::fopen(argv[1], "rb");
  if (!request) return 2;
  Header header;
  read(request, &header, 1);
  if (header.element_bytes == 8) return run_seeds<double>(request, header, argv[2]);
  if (header.element_bytes == 4) return run_seeds<float>(request, header, argv[2]);
  return header.is_bf16 ? run_seeds<bf16>(request, header, argv[2]) : run_seeds<fp16>(request, header, argv[2]);
}
