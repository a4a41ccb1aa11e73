// Runs one case of short_attention in the emulation; see driver.h.
//
// Request: the Header, then for every buffer its size in elements, then the buffers' 16-bit values. The Header's views
// say where in the buffers q, k, v, out, dout, dq, dk, dv lie. Result: the buffers as the kernels left them,
// lse [B, H, N], dbias [B, 3, H, D]. Prints the bank conflicts of ldmatrix and of cp_async_16.
#include "driver.h"
#include "short_attention/short_attention.h"

namespace {

using namespace lgfast;
using namespace lgfast::emulation;

struct View {
  int64_t buffer, offset, batch_stride, token_stride, head_stride;
};

struct Header {
  int64_t dtype, batch, queries, keys, heads, head_dim, seeds, has_bias, num_buffers;
  double softmax_scale;
  View q, k, v, out, dout, dq, dk, dv;
};

template <typename Params>
void set_sizes(Params& params, const Header& h) {
  params.batch = int(h.batch);
  params.heads = int(h.heads);
  params.num_queries = int(h.queries);
  params.num_keys = int(h.keys);
  params.softmax_scale = float(h.softmax_scale);
}

template <typename T, int kHeadDim>
void run(const Header& h, std::vector<Bytes>& buffers, Bytes& lse, Bytes& dbias) {
  const auto at = [&](const View& view) { return data_of<T>(buffers[size_t(view.buffer)]) + view.offset; };
  const auto input = [&](const View& view) {
    return HeadsInput{at(view), view.batch_stride, view.token_stride, view.head_stride};
  };
  const auto output = [&](const View& view) {
    return HeadsOutput{at(view), view.batch_stride, view.token_stride, view.head_stride};
  };
  ShortAttentionFwdParams fwd{};
  set_sizes(fwd, h);
  fwd.q = input(h.q);
  fwd.k = input(h.k);
  fwd.v = input(h.v);
  fwd.out = output(h.out);
  fwd.lse = data_of<float>(lse);
  check(launch_short_attention_fwd<T, kHeadDim>(fwd, nullptr));
  ShortAttentionBwdParams bwd{};
  set_sizes(bwd, h);
  bwd.q = fwd.q;
  bwd.k = fwd.k;
  bwd.v = fwd.v;
  bwd.out = input(h.out);
  bwd.dout = input(h.dout);
  bwd.lse = fwd.lse;
  bwd.dq = output(h.dq);
  bwd.dk = output(h.dk);
  bwd.dv = output(h.dv);
  bwd.dbias = h.has_bias ? data_of<float>(dbias) : nullptr;
  check(launch_short_attention_bwd<T, kHeadDim>(bwd, nullptr));
}

template <typename T>
void run(const Header& h, std::vector<Bytes>& buffers, Bytes& lse, Bytes& dbias) {
  if (h.head_dim == 64) return run<T, 64>(h, buffers, lse, dbias);
  if constexpr (std::is_same_v<T, bf16>) {
    if (h.head_dim == 32) return run<T, 32>(h, buffers, lse, dbias);
    if (h.head_dim == 48) return run<T, 48>(h, buffers, lse, dbias);
  }
  stop("head_dim must be 64, or in bf16 also 32 or 48");
}

std::vector<Bytes> run_request(Request& request) {
  const Header h = request.read<Header>();
  std::vector<Bytes> initial;
  for (const int64_t numel : request.read<int64_t>(h.num_buffers))
    initial.emplace_back(static_cast<size_t>(numel) * sizeof(uint16_t));
  for (Bytes& buffer : initial) buffer = request.read<unsigned char>(int64_t(buffer.size()));
  const int64_t float_bytes = sizeof(float);
  const auto result = run_seeds(h.seeds, [&] {
    std::vector<Bytes> buffers = initial;
    Bytes lse = poisoned(h.batch * h.heads * h.queries * float_bytes);
    Bytes dbias = poisoned(h.has_bias * h.batch * 3 * h.heads * h.head_dim * float_bytes);
    dispatch<bf16, fp16>(h.dtype, [&](auto zero) { run<decltype(zero)>(h, buffers, lse, dbias); });
    buffers.push_back(lse);
    buffers.push_back(dbias);
    return buffers;
  });
  std::printf("%lld %lld\n", static_cast<long long>(bank_conflicts().ldmatrix),
              static_cast<long long>(bank_conflicts().copies));
  return result;
}

}  // namespace

int main(int argc, char** argv) { return drive(argc, argv, run_request); }
