// Memory that a thread keeps from call to call. New pages from the system can cost more time than the work done in
// them.
#pragma once

#include <cstddef>
#include <vector>

#include "common/arithmetic.h"

namespace lgfast {

// Pieces of memory. The caller gives them back in the reverse order of taking them.
class KeptMemory {
 public:
  static KeptMemory& of_thread() {
    static thread_local KeptMemory kept;
    return kept;
  }

  // Returns memory on a cache line's boundary, with what it held last.
  void* take(size_t bytes) {
    if (used_ == pieces_.size()) pieces_.emplace_back();
    std::vector<Line>& piece = pieces_[used_];
    if (piece.size() * sizeof(Line) < bytes) piece.resize(ceil_div(bytes, sizeof(Line)));
    ++used_;
    return piece.data();
  }

  void give_back() { --used_; }

 private:
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  std::vector<std::vector<Line>> pieces_;
  size_t used_ = 0;
};

}  // namespace lgfast
