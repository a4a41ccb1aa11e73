// Runs add_layer_norm or bias_gelu, forward and backward, in the emulation; see driver.h.
//
// Request: the Header; then for add_layer_norm x, residual, weight, bias, drop_scale (if there is one), dout, dy (if
// there is one); for bias_gelu x, bias, dout. Result: of add_layer_norm y, out, mean, rstd, dx (with drop_scale),
// dresidual, dparams; of bias_gelu out, dx, dbias.
#include "add_layer_norm/add_layer_norm.cuh"
#include "bias_gelu/bias_gelu.cuh"
#include "driver.h"

namespace {

using namespace lgfast;
using namespace lgfast::emulation;

struct Header {
  int64_t is_gelu, dtype, rows, rows_per_sample, channels, has_drop_scale, has_dy, seeds;
  double eps;
};

template <typename T>
std::vector<Bytes> run_layer_norm(const Header& h, Request& request) {
  const auto read = [&](int64_t count) { return request.read<T>(count); };
  const int64_t numel = h.rows * h.channels, num_bytes = numel * int64_t(sizeof(T));
  const auto x = read(numel), residual = read(numel), weight = read(h.channels), bias = read(h.channels);
  const auto drop_scale = read(h.has_drop_scale ? h.rows / h.rows_per_sample : 0);
  const auto dout = read(numel), dy = read(h.has_dy ? numel : 0);
  const int channels = int(h.channels);
  const AddLayerNormRows shape{h.rows, h.rows_per_sample, channels, weight.data(),
                               h.has_drop_scale ? drop_scale.data() : nullptr};
  return run_seeds(h.seeds, [&] {
    Bytes y = poisoned(num_bytes), out = poisoned(num_bytes), mean = poisoned(4 * h.rows), rstd = poisoned(4 * h.rows);
    check(launch_add_layer_norm_fwd<T>(
        {shape, x.data(), residual.data(), bias.data(), h.eps, y.data(), out.data(), mean.data(), rstd.data()},
        nullptr));
    Bytes dx = poisoned(h.has_drop_scale ? num_bytes : 0), dresidual = poisoned(num_bytes);
    Bytes dparams = poisoned(2 * h.channels * int64_t(sizeof(T)));
    Bytes partials = poisoned(int64_t{4} * add_layer_norm_plan(h.rows, channels).blocks * 2 * h.channels);
    check(launch_add_layer_norm_bwd<T>(
        {shape, dout.data(), h.has_dy ? dy.data() : nullptr, y.data(), mean.data(), rstd.data(), dx.data(),
         dresidual.data(), dparams.data(), data_of<float>(partials)},
        nullptr));
    return std::vector<Bytes>{y, out, mean, rstd, dx, dresidual, dparams};
  });
}

template <typename T>
std::vector<Bytes> run_gelu(const Header& h, Request& request) {
  const int64_t numel = h.rows * h.channels, num_bytes = numel * int64_t(sizeof(T));
  const auto x = request.read<T>(numel), bias = request.read<T>(h.channels), dout = request.read<T>(numel);
  const int channels = int(h.channels);
  return run_seeds(h.seeds, [&] {
    Bytes out = poisoned(num_bytes), dx = poisoned(num_bytes), dbias = poisoned(h.channels * int64_t(sizeof(T)));
    Bytes partials = poisoned(int64_t{4} * bias_gelu_plan(h.rows, channels).row_blocks * h.channels);
    BiasGeluParams params{x.data(), bias.data(), nullptr, out.data(), nullptr, nullptr, h.rows, channels};
    check(launch_bias_gelu_fwd<T>(params, nullptr));
    params.dout = dout.data();
    params.out = dx.data();
    params.dbias = dbias.data();
    params.partials = data_of<float>(partials);
    check(launch_bias_gelu_bwd<T>(params, nullptr));
    return std::vector<Bytes>{out, dx, dbias};
  });
}

}  // namespace

int main(int argc, char** argv) {
  return drive(argc, argv, [](Request& request) {
    const Header h = request.read<Header>();
    return dispatch<float, bf16, fp16>(h.dtype, [&](auto zero) {
      using T = decltype(zero);
      return h.is_gelu ? run_gelu<T>(h, request) : run_layer_norm<T>(h, request);
    });
  });
}
