// Finds PyTorch's current CUDA stream. The function that knows it is in libtorch_cuda, with which a build against a CPU
// torch cannot link. So this code looks the function up in the libtorch_cuda that the process has already loaded.
#pragma once

#include <dlfcn.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace lgfast {

inline void* current_cuda_stream(int32_t device_index) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    STD_TORCH_CHECK(symbol, "lgfast: this torch has no libtorch_cuda; install a CUDA build of torch");
    return reinterpret_cast<Getter>(symbol);
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(device_index, &stream) == 0, "lgfast: no current CUDA stream on device ", device_index);
  return stream;
}

}  // namespace lgfast
