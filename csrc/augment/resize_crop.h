// The first part of augment: crop, resize, shift, flip. Rows of the crop become S wide in the spare (all three
// channels), then its columns S tall in the planes, in bands where the crop is tall.
#pragma once

#include "augment/resize_axis.h"
#include "augment/working_image.h"
#include "common/arithmetic.h"

namespace lgfast {

// Of an output row or column of an enlarged crop; one 16-byte load on the GPU.
struct alignas(16) EnlargingWeights {
  int value[kEnlargingTaps];
};

template <class Team>
LGFAST_TEAM int* row_weights(const WorkingImage<Team>& image) {
  return image.weights + kWeightCapacity;
}
template <class Team>
LGFAST_TEAM TapSpan* row_taps(const WorkingImage<Team>& image) {
  return image.taps + image.size;
}

// Returns how many output rows fit at a time: their source rows into the spare, their weights into memory; at least 1.
template <class Team>
LGFAST_TEAM int band_rows(const WorkingImage<Team>& image, const ResizeAxis& vertical) {
  const int size = image.size;
  if (vertical.enlarges() && vertical.in <= image.spare_rows && kWeightCapacity >= kEnlargingTaps * size) return size;
  const double free_rows = image.spare_rows - 2 * vertical.support() - 2;
  const int fitting = clamp(int(free_rows / vertical.scale()) + 1, 1, size);
  const int weighable = kWeightCapacity / vertical.max_taps();
  return fitting < weighable ? fitting : clamp(weighable, 1, size);
}

// Taps and weights of the output columns left ... right - 1 and, at the same time, of the rows low ... high - 1.
template <class Team>
LGFAST_TEAM void weigh(const WorkingImage<Team>& image, const ResizeAxis& horizontal, int left, int right,
                       const ResizeAxis& vertical, int low, int high) {
  const int num_columns = right - left;
  image.team.each(num_columns + high - low, [&](int i) {
    const bool is_row = i >= num_columns;
    const int k = is_row ? i - num_columns : i;
    const ResizeAxis axis = is_row ? vertical : horizontal;
    int* weights = is_row ? row_weights(image) : image.weights;
    TapSpan* taps = is_row ? row_taps(image) : image.taps;
    taps[k] = resize_taps(axis, k + (is_row ? low : left), weights + k * axis.max_taps());
  });
}

// Writes num_rows rows of the crop, in their output columns left ... right - 1, into the spare: [3, spare_rows, pitch].
template <class Team>
LGFAST_TEAM void resize_rows(const WorkingImage<Team>& image, const ResizeAxis& axis, int left, int right,
                             const uint8_t* crop, int64_t width, int num_rows) {
  const int stride = axis.max_taps(), shift = image.plan_int(kShiftX);
  const bool is_flipped = (image.plan_int(kFlip) & kMirrored) != 0;
  image.team.grid(num_rows, right - left, [&](int y, int i) {
    const int shifted = left + i - shift;
    if (shifted < 0 || shifted >= image.size) return;
    const TapSpan taps = image.taps[i];
    const int* weight = image.weights + i * stride;
    const uint8_t* pixel = crop + (y * width + taps.first) * 3;
    int sum[3] = {kFixedHalf, kFixedHalf, kFixedHalf};
    if (Team::kHeldRows > 0 && axis.enlarges()) {
      const EnlargingWeights weights = reinterpret_cast<const EnlargingWeights*>(image.weights)[i];
      for (int k = 0; k < kEnlargingTaps; ++k) {
        for (int c = 0; c < 3 && k < taps.count; ++c) sum[c] += pixel[3 * k + c] * weights.value[k];
      }
    } else {
      for (int k = 0; k < taps.count; ++k) {
        for (int c = 0; c < 3; ++c) sum[c] += pixel[3 * k + c] * weight[k];
      }
    }
    uint8_t* out = image.spare_channel(0) + y * image.pitch + (is_flipped ? image.size - 1 - shifted : shifted);
    for (int c = 0; c < 3; ++c) out[c * image.spare_rows * image.pitch] = from_fixed(sum[c]);
  });
}

// The same for a crop that is enlarged: a thread makes neighbouring rows, and most of them share their source rows.
// Rows beyond taps.count are read and weigh nothing; past the last channel's they lie in the memory of the weights.
template <class Team>
LGFAST_TEAM void enlarge_columns(const WorkingImage<Team>& image, int low, int num_rows, int first, int shift) {
  constexpr int kStrip = Team::kStrip, kRows = Team::kHeldRows > 0 ? Team::kHeldRows : 1;
  image.each_strip(ceil_div(num_rows, kRows), [&](int c, int group, int s) {
    int source[kEnlargingTaps][kStrip], held = -1;
    const int end = (group + 1) * kRows < num_rows ? (group + 1) * kRows : num_rows;
    LGFAST_NO_UNROLL
    for (int i = group * kRows; i < end; ++i) {
      const int row = row_taps(image)[i].first;
      if (row != held) {
        for (int k = 0; k < kEnlargingTaps; ++k) {
          const auto& read = image.read(image.spare_channel(c), row - first + k, s);
          for (int l = 0; l < kStrip; ++l) source[k][l] = read.value[l];
        }
        held = row;
      }
      const EnlargingWeights weights = reinterpret_cast<const EnlargingWeights*>(row_weights(image))[i];
      int sum[kStrip];
      for (int l = 0; l < kStrip; ++l) sum[l] = kFixedHalf;
      for (int k = 0; k < kEnlargingTaps; ++k) {
        for (int l = 0; l < kStrip; ++l) sum[l] += source[k][l] * weights.value[k];
      }
      image.team.pack(sum, image.strip(image.plane(c), low + i - shift, s));
    }
  });
}

// Makes the resized rows low ... high - 1 from the spare, whose first row is the crop's row `first`.
template <class Team>
LGFAST_TEAM void resize_columns(const WorkingImage<Team>& image, const ResizeAxis& axis, int low, int high, int first,
                                int shift) {
  constexpr int kStrip = Team::kStrip;
  const int stride = axis.max_taps(), num_rows = high - low;
  if (Team::kHeldRows > 0 && axis.enlarges()) return enlarge_columns(image, low, num_rows, first, shift);
  image.each_strip(num_rows, [&](int c, int i, int s) {
    const TapSpan taps = row_taps(image)[i];
    const int* weight = row_weights(image) + i * stride;
    int sum[kStrip];
    for (int l = 0; l < kStrip; ++l) sum[l] = kFixedHalf;
    for (int k = 0; k < taps.count; ++k) {
      const auto& source = image.read(image.spare_channel(c), taps.first - first + k, s);
      for (int l = 0; l < kStrip; ++l) sum[l] += source.value[l] * weight[k];
    }
    image.team.pack(sum, image.strip(image.plane(c), low + i - shift, s));
  });
}

// Fills the planes. Output pixel (y, x) shows resized pixel (y + shift_y, x' + shift_x), x' = x or mirrored; black
// where that lies outside.
template <class Team>
LGFAST_TEAM void resize_crop(const WorkingImage<Team>& image, int64_t index) {
  using Strip = typename WorkingImage<Team>::Strip;
  const AugmentParams& p = image.params;
  const int size = image.size, shift_y = image.plan_int(kShiftY);
  const ResizeAxis vertical = {p.resample, image.plan_int(kCropHeight), size};
  const ResizeAxis horizontal = {p.resample, image.plan_int(kCropWidth), size};
  const int64_t width = p.sizes[2 * index + 1];
  const int64_t corner = int64_t(image.plan_int(kCropTop)) * width + image.plan_int(kCropLeft);
  const uint8_t* crop = p.pixels + p.offsets[index] + corner * 3;
  if (shift_y != 0 || image.plan_int(kShiftX) != 0) {
    image.each_strip(size, [&](int c, int y, int s) { image.strip(image.plane(c), y, s) = Strip{}; });
    image.each_strip(image.spare_rows,
                     [&](int c, int y, int s) { image.strip(image.spare_channel(c), y, s) = Strip{}; });
  }
  const int begin = shift_y > 0 ? shift_y : 0, end = shift_y < 0 ? size + shift_y : size;
  const int band = band_rows(image, vertical), chunk = clamp(kWeightCapacity / horizontal.max_taps(), 1, size);
  for (int low = begin; low < end; low += band) {
    const int high = low + band < end ? low + band : end;
    const int first = resize_range(vertical, low).first;
    const TapSpan last = resize_range(vertical, high - 1);
    for (int left = 0; left < size; left += chunk) {
      const int right = left + chunk < size ? left + chunk : size;
      weigh(image, horizontal, left, right, vertical, low, left == 0 ? high : low);
      resize_rows(image, horizontal, left, right, crop + first * width * 3, width, last.first + last.count - first);
    }
    resize_columns(image, vertical, low, high, first, shift_y);
  }
}

}  // namespace lgfast
