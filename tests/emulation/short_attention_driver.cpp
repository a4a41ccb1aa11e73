// Runs one case of short_attention in the emulation. Usage: short_attention_driver REQUEST RESULT
//
// Request: the Header, then for every buffer its size in elements, then the buffers' 16-bit values. The views of
// q, k, v, out, dout, dq, dk, dv say where in the buffers they lie. The case runs once per seed, from fresh copies; all
// runs must agree bit for bit. Result: the buffers as the kernels left them, lse [B, H, N], dbias [B, 3, H, D]. Prints
// the bank conflicts of ldmatrix and of cp_async_16.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/device.cuh"
#include "short_attention/short_attention.h"

namespace {

using namespace lgfast;

struct View {
  int64_t buffer, offset, batch_stride, token_stride, head_stride;
};

struct Header {
  int64_t is_fp16, batch, queries, keys, heads, head_dim, seeds, has_bias, num_buffers;
  double softmax_scale;
  View q, k, v, out, dout, dq, dk, dv;
};

// Heap blocks of exactly the tensors' sizes, so that AddressSanitizer sees every access outside them.
struct Memory {
  std::vector<std::vector<uint16_t>> buffers;
  std::vector<float> lse, dbias;
};

template <typename T, int kHeadDim>
const char* run(const Header& header, Memory& memory) {
  const auto input = [&](const View& view) {
    return HeadsInput{memory.buffers[size_t(view.buffer)].data() + view.offset, view.batch_stride, view.token_stride,
                      view.head_stride};
  };
  const auto output = [&](const View& view) {
    return HeadsOutput{memory.buffers[size_t(view.buffer)].data() + view.offset, view.batch_stride, view.token_stride,
                       view.head_stride};
  };
  const int batch = int(header.batch), heads = int(header.heads);
  const int queries = int(header.queries), keys = int(header.keys);
  const float scale = float(header.softmax_scale);
  ShortAttentionFwdParams fwd{input(header.q),
                              input(header.k),
                              input(header.v),
                              output(header.out),
                              memory.lse.data(),
                              batch,
                              heads,
                              queries,
                              keys,
                              scale};
  const char* error = launch_short_attention_fwd<T, kHeadDim>(fwd, nullptr);
  if (error != nullptr) return error;
  ShortAttentionBwdParams bwd{fwd.q,
                              fwd.k,
                              fwd.v,
                              input(header.out),
                              input(header.dout),
                              memory.lse.data(),
                              output(header.dq),
                              output(header.dk),
                              output(header.dv),
                              header.has_bias ? memory.dbias.data() : nullptr,
                              batch,
                              heads,
                              queries,
                              keys,
                              scale};
  return launch_short_attention_bwd<T, kHeadDim>(bwd, nullptr);
}

template <typename T>
const char* run(const Header& header, Memory& memory) {
  if (header.head_dim == 32) return run<T, 32>(header, memory);
  if (header.head_dim == 48) return run<T, 48>(header, memory);
  if (header.head_dim == 64) return run<T, 64>(header, memory);
  return "head_dim must be 32, 48 or 64";
}

template <typename T>
void read(std::FILE* file, T* values, size_t count) {
  if (std::fread(values, sizeof(T), count, file) == count) return;
  std::fputs("short request\n", stderr);
  std::exit(2);
}

template <typename T>
void write(std::FILE* file, const std::vector<T>& values) {
  if (!values.empty()) std::fwrite(values.data(), sizeof(T), values.size(), file);
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::FILE* request = std::fopen(argv[1], "rb");
  if (request == nullptr) return 2;
  Header header;
  read(request, &header, 1);
  std::vector<int64_t> sizes(size_t(header.num_buffers));
  read(request, sizes.data(), sizes.size());
  Memory initial;
  for (const int64_t size : sizes) {
    initial.buffers.emplace_back(size_t(size));
    read(request, initial.buffers.back().data(), size_t(size));
  }
  std::fclose(request);
  const float poison = float_from_bits(0x7fc00000u);
  initial.lse.assign(size_t(header.batch * header.heads * header.queries), poison);
  initial.dbias.assign(size_t(header.has_bias * header.batch * 3 * header.heads * header.head_dim), poison);

  Memory first;
  for (int64_t seed = 0; seed < header.seeds; ++seed) {
    Memory memory = initial;
    emulation::set_seed(uint64_t(seed));
    const char* error = header.is_fp16 ? run<fp16>(header, memory) : run<bf16>(header, memory);
    if (error != nullptr) return std::fprintf(stderr, "%s\n", error), 1;
    if (seed == 0) first = memory;
    bool same = same_bits(memory.lse, first.lse) && same_bits(memory.dbias, first.dbias);
    for (size_t i = 0; i < sizes.size(); ++i) same = same && same_bits(memory.buffers[i], first.buffers[i]);
    if (!same) return std::fprintf(stderr, "seed %d gives other bits than seed 0: a race\n", int(seed)), 3;
  }

  std::printf("%lld %lld\n", static_cast<long long>(emulation::bank_conflicts().ldmatrix),
              static_cast<long long>(emulation::bank_conflicts().copies));
  std::FILE* result = std::fopen(argv[2], "wb");
  if (result == nullptr) return 2;
  for (const auto& buffer : first.buffers) write(result, buffer);
  write(result, first.lse);
  write(result, first.dbias);
  return std::fclose(result) == 0 ? 0 : 2;
}
