// What the passes over bicubic pixels on a GPU share (square_pass.h, line_pass.h): the image, and a list of the pixels
// that a pass is not certain of. The whole block makes those in double once the pass is over: in the pass, one such
// pixel would hold up its warp.
#pragma once

#include "augment/affine.h"
#include "augment/augment_layout.h"
#include "augment/augment_rows.h"
#include "augment/exact_double.h"
#include "augment/team.h"

#if defined(LGFAST_DEVICE)
namespace lgfast {

constexpr float kOnes = 0x1.8p23f;  // a float near it counts in ones: its last bits are the whole number

// The weights of four neighbours, d in [0, 1) from the second; e = 1 - d.
struct CubicWeights {
  float value[4];
};
LGFAST_HOST_DEVICE CubicWeights cubic_weights(float d, float e) {
  const float de = d * e, before = e * de, after = d * de;
  return {{-before, e + before, d + after, -after}};
}

// Items: what the pass knows them by, below 2^24, and above that one of its pixels, which is in doubt.
template <bool kIsShared>
struct DoubtList {
  uint32_t *count, *items;
  uint32_t capacity;

  // Empties this list, and the one of what is left of it; by one thread.
  LGFAST_TEAM void clear() const { count[0] = count[1] = 0; }

  // Where the list is full, calls exact(item).
  template <typename Exact>
  LGFAST_TEAM void add_item(uint32_t item, const Exact& exact) const {
    const uint32_t slot = take_slot<kIsShared>(count);
    if (slot < capacity) {
      items[slot] = item;
    } else {
      exact(item);
    }
  }

  // Adds an item for each bit that is set.
  template <typename Exact>
  LGFAST_TEAM void add(uint32_t doubts, uint32_t place, const Exact& exact) const {
    LGFAST_NO_UNROLL
    while (doubts != 0) {
      const int bit = highest_bit(doubts);
      doubts ^= 1u << bit;
      add_item(place | uint32_t(bit) << 24, exact);
    }
  }

  // Returns the list, behind this one, of the items for which decide(item) is false. All threads come here when they
  // have added theirs.
  template <typename Decide, typename Exact>
  LGFAST_TEAM DoubtList rest(const Decide& decide, const Exact& exact) const {
    sync_threads();
    const uint32_t listed = *count < capacity ? *count : capacity;
    const DoubtList left = {count + 1, items + listed, capacity - listed};
    LGFAST_NO_UNROLL
    for (uint32_t k = thread_index(); k < listed; k += block_size()) {
      if (!decide(items[k])) left.add_item(items[k], exact);
    }
    return left;
  }

  // Calls exact(item) for every item. All threads come here when they have added theirs.
  template <typename Exact>
  LGFAST_TEAM void settle(const Exact& exact) const {
    sync_threads();
    const uint32_t listed = *count < capacity ? *count : capacity;
    LGFAST_NO_UNROLL
    for (uint32_t k = thread_index(); k < listed; k += block_size()) exact(items[k]);
    sync_threads();
  }
};

// The planes of an image, and where the rows `made` of their moved pixels go: [3, size, size], through a table of what
// each byte of each channel becomes (view_table.h). The spare is free for the pass.
template <typename T, class Team>
struct BicubicPass {
  uint8_t* planes;
  const T* table;
  T* moved;
  const Affine a;
  const int fill[3];
  const int size, pitch, spare_bytes;
  const Rows made;

  // memory: of the image, where that is not shared.
  LGFAST_TEAM BicubicPass(uint8_t* memory, T* moved, const Affine& a, int fill0, int fill1, int fill2, int size,
                          Rows made)
      : planes((Team::kIsShared ? dynamic_smem() : memory) + kPlanesOffset),
        table(reinterpret_cast<const T*>(planes - kPlanesOffset +
                                         augment_layout(Team::kSize > 0 ? Team::kSize : size).histogram)),
        moved(moved),
        a(a),
        fill{fill0, fill1, fill2},
        size(Team::kSize > 0 ? Team::kSize : size),
        pitch(pitch_of(this->size)),
        spare_bytes(3 * spare_rows_of(this->size) * pitch),
        made(Team::kIsWhole ? Rows{0, this->size} : made) {}

  LGFAST_TEAM uint8_t* plane(int c) const { return planes + c * (size * pitch); }
  LGFAST_TEAM uint8_t fill_of(int c) const { return uint8_t(c == 0 ? fill[0] : c == 1 ? fill[1] : fill[2]); }

  LGFAST_TEAM T shown(int c, int value) const { return table[c * 256 + value]; }

  // Returns the list, in what the spare has left behind its first `used` bytes.
  LGFAST_TEAM DoubtList<Team::kIsShared> list_after(int used) const {
    uint32_t* count = reinterpret_cast<uint32_t*>(plane(3) + used);
    return {count, count + 2, uint32_t(spare_bytes - used) / 4 - 2};
  }

  template <typename Exact>
  LGFAST_TEAM void make_exact(int c, int y, int x) const {
    const Exact pixel(a, Resample::kBicubic, x, y, size, pitch);
    uint8_t made[1];
    pixel.make(plane(c), fill_of(c), made);
    moved[(c * size + y) * size + x] = shown(c, made[0]);
  }
};

}  // namespace lgfast
#endif
