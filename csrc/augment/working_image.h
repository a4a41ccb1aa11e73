// An image on its way through augment: its row of the plan, its planes in working memory, and the team that works on
// it. Planes are three of uint8 [S, pitch]; after them lies a spare, which the resize fills with the crop's rows.
#pragma once

#include "augment/augment_layout.h"
#include "augment/augment_rows.h"
#include "augment/team.h"
#include "common/arithmetic.h"

namespace lgfast {

template <class Team>
struct WorkingImage {
  static constexpr int kStrip = Team::kStrip;
  static_assert(kPlaneAlignment % kStrip == 0, "a strip must not cross the end of a row");
  using Strip = ByteStrip<kStrip>;

  const Team& team;
  const AugmentParams& params;
  const AugmentLayout& layout;
  const int size, pitch, spare_rows;
  unsigned char* memory;
  uint8_t* planes;
  int* weights;         // of the output columns, then of the rows
  TapSpan* taps;        // [2, S], likewise
  uint32_t* histogram;  // [3, 256]; the table of normalised values in the end
  uint8_t* lut;         // [3, 256], see pending()
  ValueRange* ranges;   // [3]
  uint32_t* total;
  const double* row = nullptr;  // this image's row of the plan
  uint8_t* moved = nullptr;     // bytes [3, S, S], see moved_pixel()
  bool has_pending = false;
  Rows held_rows = {};  // see held()

  LGFAST_TEAM WorkingImage(const Team& team, const AugmentParams& params, const AugmentLayout& layout,
                           unsigned char* memory)
      : team(team),
        params(params),
        layout(layout),
        size(Team::kSize > 0 ? Team::kSize : layout.size),
        pitch(Team::kSize > 0 ? pitch_of(Team::kSize) : layout.pitch),
        spare_rows(Team::kSize > 0 ? spare_rows_of(Team::kSize) : layout.spare_rows),
        memory(memory) {
    planes = memory + kPlanesOffset;
    weights = reinterpret_cast<int*>(memory + layout.weights);
    taps = reinterpret_cast<TapSpan*>(memory + layout.taps);
    histogram = reinterpret_cast<uint32_t*>(memory + layout.histogram);
    lut = memory + layout.lut;
    ranges = reinterpret_cast<ValueRange*>(memory + layout.ranges);
    total = reinterpret_cast<uint32_t*>(memory + layout.total);
  }

  LGFAST_TEAM int plan_int(int column) const { return int(row[column]); }
  LGFAST_TEAM int num_strips() const { return ceil_div(size, kStrip); }

  LGFAST_TEAM uint8_t* plane(int c) const { return planes + c * (size * pitch); }
  LGFAST_TEAM uint8_t* spare_channel(int c) const { return plane(3) + c * spare_rows * pitch; }
  LGFAST_TEAM Strip& strip(uint8_t* plane, int y, int s) const {
    return *reinterpret_cast<Strip*>(plane + int64_t(y) * pitch + s * kStrip);
  }
  LGFAST_TEAM typename Team::template Read<Strip> read(uint8_t* plane, int y, int s) const {
    return strip(plane, y, s);
  }

  // The rows that the planes hold. A team that makes whole images knows them when it is compiled.
  LGFAST_TEAM Rows held() const { return Team::kIsWhole ? Rows{0, size} : held_rows; }

  // f(c, y, s) for every strip of the first num_rows rows of every channel; an item is a strip.
  template <typename F>
  LGFAST_TEAM void each_strip(int num_rows, const F& f) const {
    team.grid(3 * num_rows, num_strips(), [&](int row, int s) {
      const int c = (row >= num_rows) + (row >= 2 * num_rows);
      f(c, row - c * num_rows, s);
    });
  }
  template <typename F>
  LGFAST_TEAM void each_strip(Rows rows, const F& f) const {
    each_strip(rows.count(), [&](int c, int y, int s) { f(c, rows.begin + y, s); });
  }

  // The same; where the team does not split channels, an item is a strip of all three.
  template <typename F>
  LGFAST_TEAM void each_pixel_strip(Rows rows, const F& f) const {
    if (Team::kSplitsChannels) return each_strip(rows, f);
    team.grid(rows.count(), num_strips(), [&](int y, int s) {
      for (int c = 0; c < 3; ++c) f(c, rows.begin + y, s);
    });
  }

  // What channel i / 256 shows for the plane's value i % 256. Operations that look at one value only are kept as such a
  // table, applied by whoever reads the planes next: most views need no pass for them.
  LGFAST_TEAM int pending(int i) const { return has_pending ? lut[i] : i & 255; }

  LGFAST_TEAM void apply_pending() {
    if (!has_pending) return;
    each_pixel_strip(held(), [&](int c, int y, int s) {
      Strip& values = strip(plane(c), y, s);
      const uint8_t* shown = lut + c * 256;
      team.write(values.value, [&](int l) { return shown[values.value[l]]; });
    });
    has_pending = false;
  }

  // Operations on neighbours write their bytes dense to global memory, and take them back from there: shared memory has
  // no room for three more planes. Whole images use the memory where the view will be.
  LGFAST_TEAM uint8_t* moved_pixel(int c, int y, int x) const { return moved + (c * size + y) * size + x; }

  LGFAST_TEAM void take_moved(Rows rows) {
    each_pixel_strip(rows, [&](int c, int y, int s) {
      const uint8_t* from = moved_pixel(c, y, s * kStrip);
      Strip& to = strip(plane(c), y, s);
      if (size % kStrip == 0) {
        to = *reinterpret_cast<const Strip*>(from);
      } else {
        for (int l = 0; l < kStrip; ++l) to.value[l] = s * kStrip + l < size ? from[l] : 0;
      }
    });
  }
};

}  // namespace lgfast
