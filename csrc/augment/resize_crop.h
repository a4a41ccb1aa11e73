// The first part of augment: crop, resize, shift, flip. Rows of the crop become S wide in the spare (all three
// channels), then its columns S tall in the planes, in bands where the crop is tall.
#pragma once

#include "augment/resize_axis.h"
#include "augment/view_table.h"
#include "common/arithmetic.h"

namespace lgfast {

// Where a crop lies, and how its view is shifted and flipped.
struct Crop {
  const uint8_t* pixels;
  int64_t row_bytes;  // from a row to the next
  int height, width, shift_y, shift_x;
  int is_mirrored, is_upside_down;
};

template <class Team>
LGFAST_TEAM Crop read_crop(const WorkingImage<Team>& image, int64_t index) {
  const AugmentParams& p = image.params;
  const int64_t row_bytes = int64_t(p.sizes[2 * index + 1]) * 3, offset = p.offsets[index];
  const double top = image.row[kCropTop], left = image.row[kCropLeft];
  const int flip = image.plan_int(kFlip);
  return {p.pixels + offset + int(top) * row_bytes + int(left) * 3,
          row_bytes,
          image.plan_int(kCropHeight),
          image.plan_int(kCropWidth),
          image.plan_int(kShiftY),
          image.plan_int(kShiftX),
          flip & kMirrored,
          flip & kUpsideDown};
}

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

// Whether a crop, a word for each pixel, fits into the planes while they are not yet made.
template <class Team>
LGFAST_TEAM bool is_held_in_planes(const WorkingImage<Team>& image, const Crop& crop, int band, int chunk) {
  const int size = image.size;
  return Team::kHeldRows > 0 && crop.height <= size && crop.width <= size && band == size && chunk == size &&
         (crop.shift_x | crop.shift_y) == 0 &&
         (crop.width * crop.height + kEnlargingTaps) * 4 <= 3 * size * image.pitch;
}

template <class Team>
LGFAST_TEAM void hold_pixel(const WorkingImage<Team>& image, const Crop& crop, int i) {
  const int y = i / crop.width;
  const uint8_t* pixel = crop.pixels + y * crop.row_bytes + (i - y * crop.width) * 3;
  reinterpret_cast<uint32_t*>(image.plane(0))[i] = pixel[0] | pixel[1] << 8 | pixel[2] << 16;
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
                             const Crop& crop, int first, int num_rows, bool is_held) {
  const int stride = axis.max_taps(), shift = is_held ? 0 : crop.shift_x;
  const bool is_flipped = crop.is_mirrored != 0;
  const uint8_t* pixels = crop.pixels + first * crop.row_bytes;
  image.team.grid(num_rows, right - left, [&](int y, int i) {
    const int shifted = left + i - shift;
    if (shifted < 0 || shifted >= image.size) return;
    const TapSpan taps = image.taps[i];
    const int* weight = image.weights + i * stride;
    const uint8_t* pixel = pixels + y * crop.row_bytes + taps.first * 3;
    int sum[3] = {kFixedHalf, kFixedHalf, kFixedHalf};
    if (is_held) {
      const EnlargingWeights weights = reinterpret_cast<const EnlargingWeights*>(image.weights)[i];
      const int row = Team::kIsWhole ? y : first + y;
      const uint32_t* held = reinterpret_cast<const uint32_t*>(image.plane(0)) + row * axis.in + taps.first;
      for (int k = 0; k < kEnlargingTaps; ++k) {
        for (int c = 0; c < 3; ++c) sum[c] += byte_of(held[k], c) * weights.value[k];
      }
    } else if (Team::kHeldRows > 0 && axis.enlarges()) {
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
template <class Team, typename Put>
LGFAST_TEAM void enlarge_columns(const WorkingImage<Team>& image, int low, int num_rows, int first, int shift,
                                 const Put& put) {
  constexpr int kStrip = Team::kStrip, kRows = Team::kHeldRows > 0 ? Team::kHeldRows : 1;
  image.each_strip(ceil_div(num_rows, kRows), [&](int c, int group, int s) {
    int source[kEnlargingTaps][kStrip], held = -1;
    const int end = (group + 1) * kRows < num_rows ? (group + 1) * kRows : num_rows;
    const auto* all_weights = reinterpret_cast<const EnlargingWeights*>(row_weights(image));
    int next_row = row_taps(image)[group * kRows].first;
    EnlargingWeights next_weights = all_weights[group * kRows];
    LGFAST_NO_UNROLL
    for (int i = group * kRows; i < end; ++i) {
      const int row = next_row;
      const EnlargingWeights weights = next_weights;
      next_row = row_taps(image)[i + 1].first;  // behind the last row lies other memory of the image
      next_weights = all_weights[i + 1];
      if (row != held) {
        for (int k = 0; k < kEnlargingTaps; ++k) {
          const auto& read = image.read(image.spare_channel(c), row - first + k, s);
          for (int l = 0; l < kStrip; ++l) source[k][l] = read.value[l];
        }
        held = row;
      }
      int sum[kStrip];
      for (int l = 0; l < kStrip; ++l) sum[l] = kFixedHalf;
      for (int k = 0; k < kEnlargingTaps; ++k) {
        for (int l = 0; l < kStrip; ++l) sum[l] += source[k][l] * weights.value[k];
      }
      typename WorkingImage<Team>::Strip made;
      image.team.pack(sum, made);
      put(c, low + i - shift, s, made);
    }
  });
}

// Makes the resized rows low ... high - 1 from the spare, whose first row is the crop's row `first`.
template <typename T, class Team>
LGFAST_TEAM void resize_columns(const WorkingImage<Team>& image, const ResizeAxis& axis, int low, int high, int first,
                                int shift, T* view) {
  constexpr int kStrip = Team::kStrip;
  using Strip = typename WorkingImage<Team>::Strip;
  const int stride = axis.max_taps(), num_rows = high - low;
  if (Team::kHeldRows > 0 && axis.enlarges()) {
    if (view != nullptr) {
      return enlarge_columns(image, low, num_rows, first, shift,
                             [&](int c, int y, int s, const Strip& made) { show_strip(image, view, c, y, s, made); });
    }
    return enlarge_columns(image, low, num_rows, first, shift,
                           [&](int c, int y, int s, const Strip& made) { image.strip(image.plane(c), y, s) = made; });
  }
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

// Fills the rows that the planes are to hold; or those of the view, where `view` is not null and the crop
// is_enlarged(). Output pixel (y, x) shows resized pixel (y + shift_y, x' + shift_x), x' = x or mirrored; black where
// that lies outside.
template <typename T, class Team>
LGFAST_TEAM void resize_crop(const WorkingImage<Team>& image, const Crop& crop, T* view) {
  using Strip = typename WorkingImage<Team>::Strip;
  const int size = image.size, shift_y = crop.shift_y;
  const Rows held = image.held();
  const ResizeAxis vertical = {image.params.resample, crop.height, size};
  const ResizeAxis horizontal = {image.params.resample, crop.width, size};
  if (shift_y != 0 || crop.shift_x != 0) {
    image.each_strip(held, [&](int c, int y, int s) { image.strip(image.plane(c), y, s) = Strip{}; });
    image.each_strip(image.spare_rows,
                     [&](int c, int y, int s) { image.strip(image.spare_channel(c), y, s) = Strip{}; });
  }
  const int begin = clamp(held.begin + shift_y, 0, size), end = clamp(held.end + shift_y, 0, size);
  const int band = band_rows(image, vertical), chunk = clamp(kWeightCapacity / horizontal.max_taps(), 1, size);
  const bool is_held = is_held_in_planes(image, crop, band, chunk);
  if (is_held) image.team.each_ahead(crop.width * crop.height, [&](int i) { hold_pixel(image, crop, i); });
  for (int low = begin; low < end; low += band) {
    const int high = low + band < end ? low + band : end;
    const int first = resize_range(vertical, low).first;
    const TapSpan last = resize_range(vertical, high - 1);
    for (int left = 0; left < size; left += chunk) {
      const int right = left + chunk < size ? left + chunk : size;
      weigh(image, horizontal, left, right, vertical, low, left == 0 ? high : low);
      resize_rows(image, horizontal, left, right, crop, first, last.first + last.count - first, is_held);
    }
    resize_columns(image, vertical, low, high, first, shift_y, view);
  }
}

}  // namespace lgfast
