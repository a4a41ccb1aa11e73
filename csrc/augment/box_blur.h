// Pillow's GaussianBlur: three box blurs along the rows, three along the columns, rounded to 8 bits in between.
#pragma once

#include "augment/working_image.h"

namespace lgfast {

// Pillow's extended box of a fractional radius, in 8.24 fixed point: `inner` weighs 2 radius + 1 pixels, `outer` the
// two beyond them. Source: Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering".
struct BoxFilter {
  int radius;
  uint32_t inner, outer;
};

LGFAST_HOST_DEVICE BoxFilter box_of(float gaussian_radius) {
  const float variance = gaussian_radius * gaussian_radius / 3;  // of each of three passes
  const float length = float(sqrt(12.0 * variance + 1.0));
  const float whole = float(floor((length - 1.0) / 2.0));
  float part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance);
  part /= 6 * (variance - (whole + 1) * (whole + 1));
  const float radius = whole + part;
  const uint32_t inner = uint32_t(float(1 << 24) / (radius * 2 + 1));
  return {int(radius), inner, ((1u << 24) - (int(radius) * 2 + 1) * inner) / 2};
}

// Memory that holds three planes of `size` rows.
struct BytePlanes {
  uint8_t* bytes;
  int size, pitch;
  LGFAST_HOST_DEVICE uint8_t* row(int c, int y) const { return bytes + (c * size + y) * pitch; }
};

// kStrip pixels from (y, x), averaged along the row or the column; pixels beyond an edge are the edge's.
template <int kStrip>
LGFAST_TEAM void box_pixels(const BytePlanes& from, const BoxFilter& box, bool is_row, int c, int y, int x,
                            uint8_t (&out)[kStrip]) {
  const int size = from.size, reach = box.radius + 1, margin = is_row ? reach : 0;
  const bool is_inside = x >= margin && x + kStrip + margin <= size;
  const auto add = [&](uint32_t (&sum)[kStrip], int k) {
    const uint8_t* source = from.row(c, is_row ? y : clamp(y + k, 0, size - 1));
    const int first = x + (is_row ? k : 0);
    if (is_inside) {
      for (int l = 0; l < kStrip; ++l) sum[l] += source[first + l];
    } else {
      for (int l = 0; l < kStrip; ++l) sum[l] += source[clamp(first + l, 0, size - 1)];
    }
  };
  uint32_t inner[kStrip] = {}, outer[kStrip] = {};
  add(outer, -reach);
  add(outer, reach);
  LGFAST_NO_UNROLL
  for (int k = -box.radius; k <= box.radius; ++k) add(inner, k);
  for (int l = 0; l < kStrip; ++l) {
    out[l] = uint8_t((inner[l] * box.inner + outer[l] * box.outer + (1u << 23)) >> 24);
  }
}

template <class Team>
LGFAST_TEAM void box_blur(const WorkingImage<Team>& image, const BoxFilter& box, bool is_row, const BytePlanes& from,
                          const BytePlanes& to) {
  image.each_strip(image.held(), [&](int c, int y, int s) {
    uint8_t made[Team::kStrip];
    box_pixels(from, box, is_row, c, y, s * Team::kStrip, made);
    copy_first(made, image.size - s * Team::kStrip, to.row(c, y) + s * Team::kStrip);
  });
}

template <class Team>
LGFAST_TEAM void gaussian_blur(WorkingImage<Team>& image, float radius) {
  image.apply_pending();
  const BoxFilter box = box_of(radius);
  const BytePlanes planes = {image.plane(0), image.size, image.pitch};
  const BytePlanes moved = {image.moved_pixel(0, 0, 0), image.size, image.size};
  LGFAST_NO_UNROLL
  for (int pass = 0; pass < 6; pass += 2) {  // forth and back between the two places
    box_blur(image, box, pass < 3, planes, moved);
    box_blur(image, box, pass + 1 < 3, moved, planes);
  }
}

}  // namespace lgfast
