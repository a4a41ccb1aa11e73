// Which counter a launch uses, so that no two launches that may run at the same time share one. Host only.
#pragma once

#include <cstdint>
#include <map>

namespace lgfast {

// Launches of a stream follow one another and share a place. A captured launch runs whenever its graph does, on any
// stream, so it has a place for good; a graph does not run beside itself.
class CounterPlaces {
 public:
  explicit CounterPlaces(int count) : count_(count) {}

  // A place 0 ... count - 1, or -1 where none is left. stream: an id that no other stream of the process ever has.
  int take(uint64_t stream, bool is_captured) {
    const auto known = of_stream_.find(stream);
    if (!is_captured && known != of_stream_.end()) return known->second;
    if (taken_ == count_) return -1;
    if (!is_captured) of_stream_[stream] = taken_;
    return taken_++;
  }

 private:
  int count_, taken_ = 0;
  std::map<uint64_t, int> of_stream_;
};

}  // namespace lgfast
