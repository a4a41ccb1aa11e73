// Runs add_layer_norm or bias_gelu, forward and backward, in the emulation. Usage: fused_layers_driver REQUEST RESULT
//
// Request: the Header; then of add_layer_norm x, residual, weight, bias, drop_scale (where there is one), dout, dy
// (where there is one), of bias_gelu x, bias, dout. Outputs begin as NaN, and the case runs once per seed; all runs
// must agree bit for bit. Result: y, out, mean, rstd, dx, dresidual, dparams; or out, dx, dbias.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "add_layer_norm/add_layer_norm.cuh"
#include "bias_gelu/bias_gelu.cuh"

namespace {

using namespace lgfast;
using Bytes = std::vector<unsigned char>;

struct Header {
  int64_t is_gelu, dtype, rows, rows_per_sample, channels, has_drop_scale, has_dy, seeds;
  double eps;
};

[[noreturn]] void stop(const char* text) {
  std::fprintf(stderr, "fused_layers_driver: %s\n", text);
  std::exit(1);
}

struct Case {
  Header header;
  std::FILE* file;
  int64_t element_size;

  Bytes read(int64_t count) {
    Bytes bytes(static_cast<size_t>(count * element_size));
    if (!bytes.empty() && std::fread(bytes.data(), 1, bytes.size(), file) != bytes.size()) stop("request too short");
    return bytes;
  }
};

Bytes poisoned(int64_t num_bytes) { return Bytes(static_cast<size_t>(num_bytes), 0xff); }

void check(const char* error) {
  if (error) stop(error);
}

struct LayerNormCase {
  Header h;
  int64_t element_size;
  Bytes x, residual, weight, bias, drop_scale, dout, dy;

  template <typename T>
  std::vector<Bytes> run() const {
    const int64_t map = h.rows * h.channels * element_size;
    const AddLayerNormRows shape{h.rows, h.rows_per_sample, int(h.channels), weight.data(),
                                 h.has_drop_scale ? drop_scale.data() : nullptr};
    std::vector<Bytes> out = {poisoned(map),
                              poisoned(map),
                              poisoned(4 * h.rows),
                              poisoned(4 * h.rows),
                              poisoned(h.has_drop_scale ? map : 0),
                              poisoned(map),
                              poisoned(2 * h.channels * element_size)};
    check(launch_add_layer_norm_fwd<T>({shape, x.data(), residual.data(), bias.data(), h.eps, out[0].data(),
                                        out[1].data(), out[2].data(), out[3].data()},
                                       nullptr));
    const AddLayerNormPlan plan = add_layer_norm_plan(h.rows, int(h.channels));
    Bytes partials = poisoned(int64_t{4} * plan.blocks * 2 * h.channels);
    check(launch_add_layer_norm_bwd<T>(
        {shape, dout.data(), h.has_dy ? dy.data() : nullptr, out[0].data(), out[2].data(), out[3].data(), out[4].data(),
         out[5].data(), out[6].data(), reinterpret_cast<float*>(partials.data())},
        nullptr));
    return out;
  }
};

struct GeluCase {
  Header h;
  int64_t element_size;
  Bytes x, bias, dout;

  template <typename T>
  std::vector<Bytes> run() const {
    const int64_t map = h.rows * h.channels * element_size;
    std::vector<Bytes> out = {poisoned(map), poisoned(map), poisoned(h.channels * element_size)};
    BiasGeluParams params{x.data(), bias.data(), nullptr, out[0].data(), nullptr, nullptr, h.rows, int(h.channels)};
    check(launch_bias_gelu_fwd<T>(params, nullptr));
    Bytes partials = poisoned(int64_t{4} * bias_gelu_plan(h.rows, int(h.channels)).row_blocks * h.channels);
    params.dout = dout.data();
    params.out = out[1].data();
    params.dbias = out[2].data();
    params.partials = reinterpret_cast<float*>(partials.data());
    check(launch_bias_gelu_bwd<T>(params, nullptr));
    return out;
  }
};

template <typename AnyCase>
std::vector<Bytes> run_all_seeds(const AnyCase& c) {
  std::vector<Bytes> first;
  for (int64_t seed = 0; seed < c.h.seeds; ++seed) {
    emulation::set_seed(uint64_t(seed));
    std::vector<Bytes> result = c.h.dtype == 0   ? c.template run<float>()
                                : c.h.dtype == 1 ? c.template run<bf16>()
                                                 : c.template run<fp16>();
    if (seed == 0) first = result;
    if (result != first) stop("the result depends on the order of threads: a race");
  }
  return first;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) stop("usage: fused_layers_driver REQUEST RESULT");
  Case c{};
  c.file = std::fopen(argv[1], "rb");
  if (!c.file || std::fread(&c.header, sizeof(Header), 1, c.file) != 1) stop("no request");
  const Header& h = c.header;
  c.element_size = h.dtype == 0 ? 4 : 2;
  const int64_t map = h.rows * h.channels;
  std::vector<Bytes> result;
  if (h.is_gelu) {
    GeluCase gelu{h, c.element_size, c.read(map), c.read(h.channels), c.read(map)};
    result = run_all_seeds(gelu);
  } else {
    LayerNormCase norm{h,
                       c.element_size,
                       c.read(map),
                       c.read(map),
                       c.read(h.channels),
                       c.read(h.channels),
                       c.read(h.has_drop_scale ? h.rows / h.rows_per_sample : 0),
                       c.read(map),
                       c.read(h.has_dy ? map : 0)};
    result = run_all_seeds(norm);
  }
  std::fclose(c.file);
  std::FILE* file = std::fopen(argv[2], "wb");
  if (!file) stop("cannot write the result");
  for (const Bytes& bytes : result)
    if (!bytes.empty() && std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size()) stop("no space");
  return std::fclose(file);
}
