// The last part of augment: the planes to a normalised view, the erased rectangle, the teacher's view.
#pragma once

#include "augment/noise.h"
#include "augment/view_table.h"
#include "common/arithmetic.h"
#include "common/float16.h"

namespace lgfast {

// Where an output pixel lies in the view, without antialiasing (align_corners=False).
LGFAST_TEAM float source_coordinate(int position, float scale) {
  const float coordinate = (position + 0.5f) * scale - 0.5f;
  return coordinate < 0 ? 0 : coordinate;
}
// With weight 0 b plays no part, so a coordinate that is a whole number copies.
LGFAST_TEAM float mix(float a, float b, float weight) { return weight == 0 ? a : (1 - weight) * a + weight * b; }

// Writes the rows that the planes hold by the table of the view.
template <typename T, class Team>
LGFAST_TEAM void write_view(const WorkingImage<Team>& image, T* view) {
  constexpr int kStrip = Team::kStrip;
  const AugmentParams& p = image.params;
  const T* table = view_table<T>(image);
  const bool dense = is_dense(image);
  const int channel_stride = int(p.channel_stride), row_stride = int(p.row_stride);
  const int column_stride = int(p.column_stride);  // within an image 32 bits hold every offset
  image.each_pixel_strip(image.held(), [&](int c, int y, int s) {
    const auto& values = image.read(image.plane(c), y, s);
    if (dense) {
      show_strip(image, view, c, y, s, values);
    } else {
      const T* shown = table + c * 256;
      T* out = view + (c * channel_stride + y * row_stride + s * kStrip * column_stride);
      const int count = image.size - s * kStrip < kStrip ? image.size - s * kStrip : kStrip;
      for (int l = 0; l < count; ++l) out[l * column_stride] = shown[values.value[l]];
    }
  });
}

// Writes noise, or zeros, into the rectangle of the plan, in the rows given.
template <typename T, class Team>
LGFAST_TEAM void erase(const WorkingImage<Team>& image, T* view, Rows rows) {
  constexpr int kStrip = Team::kStrip;
  const AugmentParams& p = image.params;
  const int height = image.plan_int(kEraseHeight), width = image.plan_int(kEraseWidth);
  if (height == 0 || width == 0) return;
  const int begin = Team::kIsWhole ? 0 : clamp(rows.begin - image.plan_int(kEraseTop), 0, height);
  const int end = Team::kIsWhole ? height : clamp(rows.end - image.plan_int(kEraseTop), 0, height);
  const uint32_t key0 = uint32_t(image.row[kNoiseKey0]), key1 = uint32_t(image.row[kNoiseKey1]);
  T* corner = view + image.plan_int(kEraseTop) * p.row_stride + image.plan_int(kEraseLeft) * p.column_stride;
  image.team.grid(end - begin, ceil_div(width, kStrip), [&](int row, int s) {
    const int y = begin + row;
    float noise[3][kStrip] = {};
    if (p.erase_mode != EraseMode::kConst) {
      const uint32_t first = y * width + s * kStrip, step = p.erase_mode == EraseMode::kPixel;
      for (int l = 0; l < kStrip; ++l) {
        const Noise drawn = noise_pixel(key0, key1, step * (first + l));
        noise[0][l] = drawn.channel[0];
        noise[1][l] = drawn.channel[1];
        noise[2][l] = drawn.channel[2];
      }
    }
    const int count = width - s * kStrip < kStrip ? width - s * kStrip : kStrip;
    T* out = corner + y * p.row_stride + s * kStrip * p.column_stride;
    for (int c = 0; c < 3; ++c) {
      for (int l = 0; l < count; ++l) out[c * p.channel_stride + l * p.column_stride] = from_float<T>(noise[c][l]);
    }
  });
}

// The teacher's input, resized bilinearly from the finished rows of the view.
template <typename T, class Team>
LGFAST_TEAM void write_teacher_view(const WorkingImage<Team>& image, const T* view, T* teacher, Rows rows) {
  const AugmentParams& p = image.params;
  const float scale = float(image.size) / float(p.teacher_size);
  const int begin = Team::kIsWhole ? 0 : rows.begin * p.teacher_size / image.size;
  const int end = Team::kIsWhole ? p.teacher_size : rows.end * p.teacher_size / image.size;
  image.team.grid(end - begin, p.teacher_size, [&](int row, int x) {
    const int y = begin + row;
    const float Y = source_coordinate(y, scale), X = source_coordinate(x, scale);
    const int y0 = int(Y), x0 = int(X);
    const float wy = Y - y0, wx = X - x0;
    const int64_t down = y0 < image.size - 1 ? p.row_stride : 0, right = x0 < image.size - 1 ? p.column_stride : 0;
    const T* source = view + y0 * p.row_stride + x0 * p.column_stride;
    T* out = teacher + y * p.teacher_row_stride + x * p.teacher_column_stride;
    T made[3];
    if (wx == 0 && wy == 0) {  // no loads that weigh nothing
      for (int c = 0; c < 3; ++c) made[c] = source[c * p.channel_stride];
    } else {
      for (int c = 0; c < 3; ++c) {
        const T* corner = source + c * p.channel_stride;
        const float upper = mix(to_float(corner[0]), to_float(corner[right]), wx);
        const float lower = mix(to_float(corner[down]), to_float(corner[down + right]), wx);
        made[c] = from_float<T>(mix(upper, lower, wy));
      }
    }
    for (int c = 0; c < 3; ++c) out[c * p.teacher_channel_stride] = made[c];
  });
}

}  // namespace lgfast
