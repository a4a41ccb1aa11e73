// What the drivers of emulated kernels share: a driver reads a request, runs a case once per seed, and writes the
// result. tests/emulation/driver.py writes requests and reads results.
//
// Every tensor is a heap block of exactly its size, so that AddressSanitizer sees each access outside it. Outputs begin
// as NaN, so that an element that is not written shows.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/device.cuh"

namespace lgfast::emulation {

using Bytes = std::vector<unsigned char>;

[[noreturn]] inline void stop(const char* text) {
  std::fprintf(stderr, "%s\n", text);
  std::exit(1);
}

// Stops at the error of a launch, if there is one.
inline void check(const char* error) {
  if (error != nullptr) stop(error);
}

class Request {
 public:
  explicit Request(const char* path) : file_(std::fopen(path, "rb")) {
    if (file_ == nullptr) stop("no request");
  }
  ~Request() { std::fclose(file_); }
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  template <typename T>
  std::vector<T> read(int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    if (count > 0 && std::fread(values.data(), sizeof(T), values.size(), file_) != values.size()) {
      stop("the request is too short");
    }
    return values;
  }
  template <typename T>
  T read() {
    return read<T>(1)[0];
  }

 private:
  std::FILE* file_;
};

// Returns bytes that are NaN in every dtype.
inline Bytes poisoned(int64_t num_bytes) { return Bytes(static_cast<size_t>(num_bytes), 0xff); }

template <typename T>
T* data_of(Bytes& bytes) {
  return reinterpret_cast<T*>(bytes.data());
}

// Calls f(T{}), where T is the type of that index in the list.
template <typename T, typename... Others, typename F>
auto dispatch(int64_t index, const F& f) {
  if (index == 0) return f(T{});
  if constexpr (sizeof...(Others) > 0) {
    return dispatch<Others...>(index - 1, f);
  } else {
    stop("no such dtype");
  }
}

// Returns what run() returns, which must be the same bits for every seed.
template <typename F>
std::vector<Bytes> run_seeds(int64_t seeds, const F& run) {
  std::vector<Bytes> first;
  for (int64_t seed = 0; seed < seeds; ++seed) {
    set_seed(static_cast<uint64_t>(seed));
    std::vector<Bytes> result = run();
    if (seed == 0) first = result;
    if (result != first) stop("the result depends on the order of threads: a race");
  }
  return first;
}

// The main function of a driver, called as NAME REQUEST RESULT. Writes what run(request) returns, one after the other.
template <typename F>
int drive(int argc, char** argv, const F& run) {
  if (argc != 3) stop("usage: NAME REQUEST RESULT");
  Request request(argv[1]);
  const std::vector<Bytes> result = run(request);
  std::FILE* file = std::fopen(argv[2], "wb");
  if (file == nullptr) stop("cannot write the result");
  for (const Bytes& bytes : result) {
    if (!bytes.empty() && std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size()) {
      stop("cannot write the result");
    }
  }
  return std::fclose(file);
}

}  // namespace lgfast::emulation
