// The scheduler and the warp-wide instructions of the host emulation; see device_emulation.h.
#include <pthread.h>

#include <algorithm>
#include <array>
#include <cstdarg>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "common/device.cuh"
#include "fiber.h"

namespace lgfast::emulation {
namespace {

constexpr int kMaxBlock = 1024;

enum class State { kRunnable, kAtWarp, kAtBlock, kDone };
constexpr int kNamedBarriers = 16;

struct NamedBarrier {
  int expected = 0, arrived = 0;
  std::vector<int> waiting;
};

struct Copy {
  void* smem;
  const void* global;
  bool valid;
  int group;
};

struct Thread {
  Fiber fiber;
  Stack stack;
  State state = State::kRunnable;
  Site site{};
  void* arguments = nullptr;
  std::vector<Copy> copies;         // issued and not yet waited for
  std::vector<const void*> copied;  // targets of all copies
  int group = 0;                    // cp.async groups committed
  ThreadPosition position{};
};

uint64_t random_state = 1;
bool runs_ahead = false;
int ranked_threads;           // of a warpgroup, or of a warp where the block has less than two warpgroups
std::vector<uint64_t> ranks;  // one for so many threads
std::vector<std::unique_ptr<Thread>> threads;  // kept from one launch to the next
std::vector<int> runnable;
std::vector<int> warp_waiting, warpgroup_waiting;
NamedBarrier barriers[kNamedBarriers];
int block_threads, block_waiting, finished;
Thread* current;
Fiber main_fiber;
const std::function<void()>* body;
unsigned char* smem_block;
int smem_block_bytes;
BankConflicts conflicts;

uint64_t next_random() {  // splitmix64
  uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Returns a place in `runnable`. Where some run ahead, the best ranked of a few at random: the threads of its group go
// on until a barrier stops them.
size_t next_runnable() {
  constexpr int kCandidates = 8;
  size_t best = size_t(next_random() % runnable.size());
  for (int i = 1; runs_ahead && i < kCandidates; ++i) {
    const size_t other = size_t(next_random() % runnable.size());
    if (ranks[size_t(runnable[other] / ranked_threads)] > ranks[size_t(runnable[best] / ranked_threads)]) best = other;
  }
  return best;
}

bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && std::strcmp(a.function, b.function) == 0 && std::strcmp(a.file, b.file) == 0;
}

std::string describe(const Thread& thread) {
  if (thread.state == State::kDone) return "left the kernel";
  if (thread.state == State::kRunnable) return "runs";
  const char* name = std::strrchr(thread.site.file, '/');
  return std::string("waits at ") + thread.site.function + " (" + (name ? name + 1 : thread.site.file) + ":" +
         std::to_string(thread.site.line) + ")";
}

// Describes threads, one line for neighbours in the same state: "threads 0-15: waits at ..., threads 16-31: ...".
std::string describe(int first, int count) {
  std::string text;
  for (int i = first; i < first + count;) {
    int last = i;
    while (last + 1 < first + count && describe(*threads[last + 1]) == describe(*threads[i])) ++last;
    text += "\n  threads " + std::to_string(i) + "-" + std::to_string(last) + ": " + describe(*threads[i]);
    i = last + 1;
  }
  return text;
}

void switch_to_next(bool last) {
  Thread& from = *current;
  if (runnable.empty()) {
    if (finished != block_threads) fail("deadlock, no thread can go on:%s", describe(0, block_threads).c_str());
    return switch_fiber(from.fiber, main_fiber, last);
  }
  const size_t pick = next_runnable();
  current = threads[runnable[pick]].get();
  runnable[pick] = runnable.back();
  runnable.pop_back();
  if (current != &from) switch_fiber(from.fiber, current->fiber, last);
}

void wake(int first, int count) {
  for (int i = first; i < first + count; ++i) {
    threads[i]->state = State::kRunnable;
    if (threads[i].get() != current) runnable.push_back(i);
  }
}

void check_same_site(int first, int count, const char* what) {
  for (int i = first; i < first + count; ++i) {
    if (!same_site(threads[i]->site, threads[first]->site)) fail("%s:%s", what, describe(first, count).c_str());
  }
}

void perform(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.smem, copy.global, 16);
  } else {
    std::memset(copy.smem, 0, 16);
  }
}

// Returns the turns beyond the first that 16-byte accesses of up to eight lanes take. Equal addresses are one access.
int extra_turns(const std::array<const void*, 8>& rows, size_t count = 8) {
  int in_group[8] = {}, turns = 1;
  for (size_t i = 0; i < count; ++i) {
    if (std::find(rows.begin(), rows.begin() + i, rows[i]) != rows.begin() + i) continue;
    turns = std::max(turns, ++in_group[(static_cast<const unsigned char*>(rows[i]) - smem_block) / 16 % 8]);
  }
  return turns - 1;
}

void count_copy_conflicts() {
  for (int first = 0; first < block_threads; first += 8) {
    for (size_t n = 0, count = 1; count > 0; ++n) {
      std::array<const void*, 8> rows;
      count = 0;
      for (int i = first; i < first + 8; ++i) {
        if (n < threads[i]->copied.size()) rows[count++] = threads[i]->copied[n];
      }
      conflicts.copies += extra_turns(rows, count);
    }
  }
}

void thread_entry() {
  finish_switch(nullptr);
  (*body)();
  if (!current->copies.empty()) fail("thread %d leaves with an unfinished cp_async_16", current->position.thread);
  current->state = State::kDone;
  ++finished;
  switch_to_next(true);
}

void describe_main_stack() {
  pthread_attr_t attributes;
  void* bottom = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &main_fiber.stack_bytes);
  pthread_attr_destroy(&attributes);
  main_fiber.stack_bottom = bottom;
}

void run_block(Grid grid, int block, int index) {
  block_threads = block;
  block_waiting = finished = 0;
  warp_waiting.assign(size_t(block) / kWarpSize, 0);
  warpgroup_waiting.assign(size_t(block) / kWarpgroupSize, 0);
  for (NamedBarrier& barrier : barriers) barrier = {};
  ranked_threads = block >= 2 * kWarpgroupSize ? kWarpgroupSize : kWarpSize;
  ranks.resize(size_t((block + ranked_threads - 1) / ranked_threads));
  for (uint64_t& rank : ranks) rank = next_random();
  begin_warpgroups(block, smem_block_bytes);
  forget_phase_barriers();
  runnable.resize(size_t(block));
  std::iota(runnable.begin(), runnable.end(), 0);
  for (int i = 0; i < block; ++i) {
    Thread& thread = *threads[i];
    thread.state = State::kRunnable;
    thread.group = 0;
    thread.copied.clear();
    thread.position = {i, block, index % grid.x, index / grid.x % grid.y, index / (grid.x * grid.y), grid};
    prepare(thread.fiber, thread.stack, thread_entry);
  }
  runnable.pop_back();
  current = threads[size_t(block) - 1].get();
  switch_fiber(main_fiber, current->fiber);
  end_warpgroups();
  count_copy_conflicts();
}

// Waits for the `count` threads around this one; the last to arrive runs `execute` for all.
void collective(std::vector<int>& waiting, int count, const char* complaint, Site site, void* arguments,
                void (*execute)(void* const*)) {
  Thread& self = *current;
  const int group = self.position.thread / count, first = group * count;
  self.site = site;
  self.arguments = arguments;
  self.state = State::kAtWarp;
  if (++waiting[size_t(group)] < count) return switch_to_next(false);
  check_same_site(first, count, complaint);
  void* lanes[kWarpgroupSize];
  for (int i = 0; i < count; ++i) lanes[i] = threads[size_t(first + i)]->arguments;
  execute(lanes);
  waiting[size_t(group)] = 0;
  wake(first, count);
}

}  // namespace

void set_seed(uint64_t seed) {
  random_state = seed;
  runs_ahead = seed % 2 == 1;
}
const BankConflicts& bank_conflicts() { return conflicts; }

void fail(const char* format, ...) {
  std::fflush(stdout);
  if (current != nullptr) {
    std::fprintf(stderr, "lgfast emulation: block (%d, %d, %d): ", current->position.block_x, current->position.block_y,
                 current->position.block_z);
  }
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::_Exit(70);
}

const ThreadPosition& position() { return current->position; }
unsigned char* smem() { return smem_block; }

void block_barrier(Site site) {
  Thread& self = *current;
  self.site = site;
  self.state = State::kAtBlock;
  if (++block_waiting < block_threads) return switch_to_next(false);
  check_same_site(0, block_threads, "threads of a block wait at different barriers");
  block_waiting = 0;
  publish_phase_barriers();
  wake(0, block_threads);
}

void warp_collective(Site site, void* arguments, void (*execute)(void* const*)) {
  collective(warp_waiting, kWarpSize, "divergent warp: its lanes wait at different instructions", site, arguments,
             execute);
}

void warpgroup_collective(Site site, void* arguments, void (*execute)(void* const*)) {
  if (current->position.thread / kWarpgroupSize >= int(warpgroup_waiting.size()))
    fail("%s: thread %d is not in four warps from a multiple of 128 threads on", site.function,
         current->position.thread);
  collective(warpgroup_waiting, kWarpgroupSize, "divergent warpgroup: its threads wait at different instructions", site,
             arguments, execute);
}

void named_barrier(Site site, int number, int expected, bool waits) {
  Thread& self = *current;
  if (number < 0 || number >= kNamedBarriers) fail("%s: there is no barrier %d", site.function, number);
  NamedBarrier& barrier = barriers[number];
  if (expected % kWarpSize != 0 || expected > block_threads)
    fail("%s: %d threads are not whole warps of the block's %d threads", site.function, expected, block_threads);
  if (barrier.arrived > 0 && barrier.expected != expected)
    fail("%s: barrier %d waits for %d threads, not %d", site.function, number, barrier.expected, expected);
  barrier.expected = expected;
  ++barrier.arrived;
  self.site = site;
  if (barrier.arrived == expected) {
    for (const int i : barrier.waiting) wake(i, 1);
    barrier.waiting.clear();
    barrier.arrived = 0;
  } else if (waits) {
    barrier.waiting.push_back(self.position.thread);
    self.state = State::kAtBlock;
    switch_to_next(false);
  }
}

void wait_until_woken(Site site) {
  current->site = site;
  current->state = State::kAtBlock;
  switch_to_next(false);
}
void wake_thread(int thread) { wake(thread, 1); }

int smem_bytes() { return smem_block_bytes; }

bool is_being_copied(uint32_t address) {
  const void* row = smem_block + address / 16 * 16;
  return std::any_of(current->copies.begin(), current->copies.end(), [&](const Copy& c) { return c.smem == row; });
}

unsigned char* smem_row(uint32_t address, const char* function) {
  if (address % 16 != 0) fail("%s: the address is not a multiple of 16", function);
  if (int64_t(address) + 16 > smem_block_bytes) {
    fail("%s: byte offset %d is outside the block's %d bytes of shared memory", function, int(address),
         smem_block_bytes);
  }
  return smem_block + address;
}

// The seed decides whether the copy happens now or at the wait, so code that forgets to wait gives different results.
void copy_async(uint32_t smem, const void* global, bool valid) {
  unsigned char* row = smem_row(smem, "cp_async_16");
  note_smem_write(smem);
  if (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0) fail("cp_async_16: global address not a multiple of 16");
  const Copy copy{row, global, valid, current->group};
  if (next_random() % 4 == 0) perform(copy);
  current->copies.push_back(copy);
  current->copied.push_back(row);
}

void commit_copies() { ++current->group; }

void wait_copies(int pending_groups) {
  auto& copies = current->copies;
  const int done = current->group - pending_groups;
  const auto rest = std::stable_partition(copies.begin(), copies.end(), [&](const Copy& c) { return c.group < done; });
  std::for_each(copies.begin(), rest, perform);
  copies.erase(copies.begin(), rest);
}

template <bool kTrans>
void ldmatrix(void* const* lanes) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t values[8][8];
    std::array<const void*, 8> rows;
    for (size_t row = 0; row < 8; ++row) {
      rows[row] = static_cast<LdmatrixLane*>(lanes[8 * size_t(matrix) + row])->row;
      std::memcpy(values[row], rows[row], 16);
    }
    conflicts.ldmatrix += extra_turns(rows);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int g = lane / 4, c = 2 * (lane % 4);
      const uint32_t low = kTrans ? values[c][g] : values[g][c];
      const uint32_t high = kTrans ? values[c + 1][g] : values[g][c + 1];
      static_cast<LdmatrixLane*>(lanes[lane])->r[matrix] = low | (high << 16);
    }
  }
}
template void ldmatrix<false>(void* const*);
template void ldmatrix<true>(void* const*);

// Lane 4 g + c gives values 2c and 2c + 1 of row g of each matrix, or, transposed, of its column g.
template <bool kTrans, int kMatrices>
void stmatrix(void* const* lanes) {
  for (size_t matrix = 0; matrix < kMatrices; ++matrix) {
    uint16_t values[8][8];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int g = lane / 4, c = 2 * (lane % 4);
      const uint32_t pair = static_cast<StmatrixLane*>(lanes[lane])->r[matrix];
      (kTrans ? values[c][g] : values[g][c]) = uint16_t(pair);
      (kTrans ? values[c + 1][g] : values[g][c + 1]) = uint16_t(pair >> 16);
    }
    std::array<const void*, 8> rows;
    for (size_t row = 0; row < 8; ++row) {
      unsigned char* to = smem_row(static_cast<StmatrixLane*>(lanes[8 * matrix + row])->row, "stmatrix");
      std::memcpy(to, values[row], 16);
      rows[row] = to;
    }
    conflicts.ldmatrix += extra_turns(rows);
  }
}
template void stmatrix<false, 4>(void* const*);
template void stmatrix<true, 4>(void* const*);
template void stmatrix<true, 2>(void* const*);

// acc[16][8] += a[16][16] b[16][8]. It touches only the lanes' registers, so sanitizers skip it, for speed.
template <typename T>
__attribute__((no_sanitize("address", "undefined"))) void mma(void* const* lanes) {
  float a[16][16], b[16][8];
  for (int i = 0; i < kWarpSize; ++i) {
    const auto* lane = static_cast<const MmaLane*>(lanes[i]);
    const int g = i / 4, c = 2 * (i % 4);
    for (int part = 0; part < 4; ++part) {
      const int row = g + 8 * (part % 2), column = c + 8 * (part / 2);
      a[row][column] = unpack_low<T>(lane->a[part]);
      a[row][column + 1] = unpack_high<T>(lane->a[part]);
    }
    for (int part = 0; part < 2; ++part) {
      b[c + 8 * part][g] = unpack_low<T>(lane->b[part]);
      b[c + 8 * part + 1][g] = unpack_high<T>(lane->b[part]);
    }
  }
  float sum[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) sum[row][n] += a[row][k] * b[k][n];
    }
  }
  for (int i = 0; i < kWarpSize; ++i) {
    const int g = i / 4, c = 2 * (i % 4);
    for (int part = 0; part < 4; ++part) {
      static_cast<MmaLane*>(lanes[i])->acc[part] += sum[g + 8 * (part / 2)][c + part % 2];
    }
  }
}
template void mma<bf16>(void* const*);
template void mma<fp16>(void* const*);

const char* launch_blocks(const std::function<void()>& kernel, Grid grid, int block, int smem_bytes) {
  if (block < kWarpSize || block > kMaxBlock || block % kWarpSize != 0) return "invalid block size";
  if (smem_bytes < 0 || smem_bytes > max_smem_bytes()) return "invalid shared memory size";
  if (grid.x < 1 || grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535) return "invalid grid";
  while (threads.size() < size_t(block)) threads.push_back(std::make_unique<Thread>());
  describe_main_stack();
  body = &kernel;
  std::vector<int> order(size_t(grid.x) * size_t(grid.y) * size_t(grid.z));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[size_t(next_random() % i)]);
  for (const int index : order) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 1024, size_t(smem_bytes)) != 0) return "out of memory";
    smem_block = static_cast<unsigned char*>(memory);
    smem_block_bytes = smem_bytes;
    std::memset(smem_block, 0xff, size_t(smem_bytes));
    run_block(grid, block, index);
    std::free(memory);
  }
  current = nullptr;
  return nullptr;
}

}  // namespace lgfast::emulation
