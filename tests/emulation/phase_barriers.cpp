// Barriers in shared memory, whose phases threads wait for. See device_emulation.h.
#include <map>
#include <set>
#include <vector>

#include "common/device.cuh"

namespace lgfast::emulation {
namespace {

struct PhaseBarrier {
  int count, writer;
  bool is_published;  // a barrier of the block has passed since
  int phase = 0;
  std::set<int> arrived;  // threads, in this phase
  std::vector<int> waiting;
};

std::map<uint32_t, PhaseBarrier> barriers;

PhaseBarrier& barrier_at(const char* function, uint32_t address) {
  const auto found = barriers.find(address);
  if (found == barriers.end()) fail("%s: no barrier begins at byte offset %u", function, address);
  PhaseBarrier& barrier = found->second;
  if (!barrier.is_published && barrier.writer != position().thread)
    fail("%s: thread %d began the barrier at byte offset %u, with no sync_threads() since", function, barrier.writer,
         address);
  return barrier;
}

}  // namespace

void forget_phase_barriers() { barriers.clear(); }
void publish_phase_barriers() {
  for (auto& [address, barrier] : barriers) barrier.is_published = true;
}

void begin_phase_barrier(Site site, uint32_t address, int count) {
  if (address % 8 != 0 || int64_t(address) + 8 > smem_bytes())
    fail("%s: byte offset %u is no multiple of 8 in the block's %d bytes of shared memory", site.function, address,
         smem_bytes());
  if (count < 1) fail("%s: %d arrivals", site.function, count);
  if (!barriers.emplace(address, PhaseBarrier{count, position().thread, false, 0, {}, {}}).second)
    fail("%s: the barrier at byte offset %u has begun", site.function, address);
}

void arrive_at_phase_barrier(Site site, uint32_t address) {
  PhaseBarrier& barrier = barrier_at(site.function, address);
  if (!barrier.arrived.insert(position().thread).second)
    fail("%s: thread %d arrives twice in a phase of the barrier at byte offset %u", site.function, position().thread,
         address);
  if (int(barrier.arrived.size()) < barrier.count) return;
  ++barrier.phase;
  barrier.arrived.clear();
  for (const int thread : barrier.waiting) wake_thread(thread);
  barrier.waiting.clear();
}

void wait_at_phase_barrier(Site site, uint32_t address, int parity) {
  if (parity != 0 && parity != 1) fail("%s: parity %d", site.function, parity);
  while (barrier_at(site.function, address).phase % 2 == parity) {
    barriers.at(address).waiting.push_back(position().thread);
    wait_until_woken(site);
  }
}

}  // namespace lgfast::emulation
