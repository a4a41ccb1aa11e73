// Runs one case of feature_mse in the emulation; see driver.h.
//
// Request: the Header, the PairHeaders, then for each pair the elements of student and of teacher. Result: the loss,
// the weighted loss, then the flat gradient, both before and after the backward kernel has multiplied it by dloss *
// scale. Launches that count their blocks run twice with one counter, as a captured graph does.
#include <algorithm>
#include <memory>

#include "driver.h"
#include "feature_mse/feature_mse.cuh"

namespace {

using namespace lgfast;
using namespace lgfast::emulation;

struct Header {
  int64_t batch, num_pairs, seeds, dtype;
  int64_t counter;  // at first; -1: the launch has none
  double grad_scale, dloss, scale, weight;
};

struct PairHeader {
  int64_t channels, student_h, student_w, teacher_h, teacher_w;
  int64_t student_numel, student_image_stride, student_token_stride;
  int64_t teacher_numel, teacher_image_stride, teacher_row_stride, teacher_column_stride;
};

template <typename T>
struct Case {
  Header header;
  std::vector<PairHeader> pairs;
  std::vector<std::vector<T>> student, teacher;

  int64_t grad_numel(const PairHeader& pair) const {
    return header.grad_scale == 0 ? 0 : header.batch * pair.student_h * pair.student_w * pair.channels;
  }
};

template <typename T>
Case<T> read_case(const Header& header, Request& request) {
  Case<T> c{header, request.read<PairHeader>(header.num_pairs), {}, {}};
  for (const PairHeader& pair : c.pairs) {
    c.student.push_back(request.read<T>(pair.student_numel));
    c.teacher.push_back(request.read<T>(pair.teacher_numel));
  }
  return c;
}

// The gradients lie in `grad` one after the other.
template <typename T>
FeatureMseParams make_params(const Case<T>& c, Bytes& grad) {
  FeatureMseParams params{};
  params.num_pairs = int(c.pairs.size());
  T* next_grad = grad.empty() ? nullptr : data_of<T>(grad);
  for (size_t k = 0; k < c.pairs.size(); ++k) {
    const PairHeader& in = c.pairs[k];
    FeatureMsePair& p = params.pairs[k];
    p.student = c.student[k].data();
    p.teacher = c.teacher[k].data();
    p.grad = next_grad;
    p.channels = int(in.channels);
    p.student_h = int(in.student_h), p.student_w = int(in.student_w);
    p.teacher_h = int(in.teacher_h), p.teacher_w = int(in.teacher_w);
    p.student_image_stride = in.student_image_stride, p.student_token_stride = in.student_token_stride;
    p.teacher_image_stride = in.teacher_image_stride, p.teacher_row_stride = in.teacher_row_stride;
    p.teacher_column_stride = in.teacher_column_stride;
    complete_feature_mse_pair(p, c.header.batch, c.header.grad_scale);
    if (next_grad != nullptr) next_grad += c.grad_numel(in);
  }
  return params;
}

template <typename T>
std::vector<Bytes> run(const Case<T>& c) {
  using Acc = typename Accumulate<T>::type;
  int64_t grad_numel = 0;
  for (const PairHeader& pair : c.pairs) grad_numel += c.grad_numel(pair);
  Bytes loss = poisoned(sizeof(Acc)), weighted = loss, grad = poisoned(grad_numel * int64_t(sizeof(T))), scaled = grad;
  FeatureMseParams params = make_params(c, grad);
  if (!plan_feature_mse(params, c.header.batch, sizeof(T), max_smem_bytes())) stop("no plan");
  const auto weight = std::make_unique<Acc>(Acc(c.header.weight));
  const auto counter = std::make_unique<uint32_t>(uint32_t(c.header.counter));
  params.scalars = {weight.get(), loss.data(), weighted.data()};
  if (c.header.counter >= 0) params.counter = counter.get();
  for (int run = 0; run < (params.counter == nullptr ? 1 : 2); ++run) {
    for (Bytes* result : {&loss, &weighted, &grad}) std::fill(result->begin(), result->end(), 0xff);
    Bytes partials = poisoned(round_up(feature_mse_blocks(params), 2) * int64_t(sizeof(double)));
    params.partials = data_of<double>(partials);
    check(launch_feature_mse_fwd<T>(params, nullptr));
    if (params.counter != nullptr && *counter != 0) stop("the counter is not 0 after the launch");
  }
  const Acc dloss(c.header.dloss);
  check(launch_feature_mse_bwd<T>(grad.data(), &dloss, scaled.data(), grad_numel, c.header.scale, nullptr));
  return {loss, weighted, grad, scaled};
}

}  // namespace

int main(int argc, char** argv) {
  return drive(argc, argv, [](Request& request) {
    const Header header = request.read<Header>();
    return dispatch<float, bf16, fp16, double>(header.dtype, [&](auto zero) {
      const auto c = read_case<decltype(zero)>(header, request);
      return run_seeds(header.seeds, [&] { return run(c); });
    });
  });
}
