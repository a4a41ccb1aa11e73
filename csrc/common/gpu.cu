#include <mutex>

#include "common/counter_places.h"
#include "common/device.cuh"
#include "common/gpu.h"

namespace lgfast {
namespace {

constexpr int kMaxCounters = 4096;
__device__ uint32_t launch_counters[kMaxCounters];  // 0 when the library is loaded; kernels leave 0

}  // namespace

int gpu_smem_bytes() { return max_smem_bytes(); }

uint32_t* launch_counter(void* stream) {
  static std::mutex mutex;
  static std::map<int, CounterPlaces> places;  // by GPU
  const auto handle = static_cast<cudaStream_t>(stream);
  int device = 0;
  unsigned long long id = 0;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  void* counters = nullptr;
  if (cudaGetDevice(&device) != cudaSuccess || cudaStreamIsCapturing(handle, &status) != cudaSuccess ||
      cudaStreamGetId(handle, &id) != cudaSuccess || cudaGetSymbolAddress(&counters, launch_counters) != cudaSuccess) {
    cudaGetLastError();  // else the launch would report it
    return nullptr;
  }
  const std::lock_guard<std::mutex> lock(mutex);
  const int place =
      places.try_emplace(device, kMaxCounters).first->second.take(id, status != cudaStreamCaptureStatusNone);
  return place < 0 ? nullptr : static_cast<uint32_t*>(counters) + place;
}

}  // namespace lgfast
