// One image of the batch, from its uint8 pixels and its row of the plan to the normalised output: the whole algorithm,
// for a team that is one CPU thread or one CUDA block.
//
// Memory: three planes [S, pitch] of uint8 and a spare. The resize makes the crop's rows S wide in the spare (all three
// channels), then columns S tall into the planes, in bands where the crop is tall. An operation that looks at
// neighbours writes bytes where the finished image will be, and takes them back. Operations that look at one value only
// are kept as a pending lookup table per channel, applied by whoever reads the planes next: most views need no pass for
// them. Work is dealt out in strips of kStrip neighbouring pixels of a row: a SIMD loop on the CPU, 4-byte accesses on
// the GPU.
//
// Team: kStrip; Read<Strip>, how a strip is read: copied, or in place; kHeldRows, rows of a strip that a thread makes
// from source rows that it keeps, 0: none; each(n, f(i)); grid(rows, columns, f(y, x)); add(counter, value);
// add_to_total(counter, value); pack(sums, strip) from fixed point; write(out, f(l)), a strip of results.
// each and grid end with a barrier of the team.
#pragma once

#include "augment/affine.h"
#include "augment/augment_layout.h"
#include "augment/noise.h"

#if defined(__CUDACC__)
#define LGFAST_TEAM __device__ __forceinline__
#define LGFAST_NO_UNROLL _Pragma("unroll 1")
#else
#define LGFAST_TEAM inline
#define LGFAST_NO_UNROLL
#endif

namespace lgfast {

template <int kSize>
struct alignas(kSize) Bytes {
  uint8_t value[kSize];
};

// The first `count` bytes, or all if there are fewer.
template <int kSize>
LGFAST_TEAM void copy_first(const uint8_t (&bytes)[kSize], int count, uint8_t* out) {
  if (count >= kSize) {
    memcpy(out, bytes, kSize);
  } else {
    for (int k = 0; k < kSize; ++k) {
      if (k < count) out[k] = bytes[k];
    }
  }
}

// Of an output row of an enlarged crop; one 16-byte load on the GPU.
struct alignas(16) Weights {
  int value[kEnlargingTaps];
};

template <class Team>
class ImageAugmenter {
 public:
  LGFAST_TEAM ImageAugmenter(const Team& team, const AugmentParams& params, const AugmentLayout& layout,
                             unsigned char* memory)
      : team_(team),
        p_(params),
        layout_(layout),
        size_(layout.size),
        pitch_(layout.pitch),
        spare_rows_(layout.spare_rows) {
    planes_ = memory + layout.planes;
    weights_ = reinterpret_cast<int*>(memory + layout.weights);
    taps_ = reinterpret_cast<TapSpan*>(memory + layout.taps);
    histogram_ = reinterpret_cast<uint32_t*>(memory + layout.histogram);
    lut_ = memory + layout.lut;
    ranges_ = reinterpret_cast<ValueRange*>(memory + layout.ranges);
    total_ = reinterpret_cast<uint32_t*>(memory + layout.total);
  }

  template <typename T>
  LGFAST_TEAM void run(int64_t b) {
    row_ = p_.plan + b * p_.num_columns;
    T* image = static_cast<T*>(p_.images) + b * 3 * size_ * size_;
    moved_ = reinterpret_cast<uint8_t*>(image);
    T* teacher = static_cast<T*>(p_.teacher) + b * 3 * p_.teacher_size * p_.teacher_size;
    if (!crop_fits(layout_, p_.resample, plan_int(kCropHeight), plan_int(kCropWidth))) {  // a GPU cannot raise
      team_.each(3 * size_ * size_, [&](int i) { image[i] = from_float<T>(NAN); });
      team_.each(3 * p_.teacher_size * p_.teacher_size, [&](int i) { teacher[i] = from_float<T>(NAN); });
      return;
    }
    resize_crop(p_.indices[b]);
    is_pending_ = false;
    for (int column = kFirstOp; column + 1 < p_.num_columns; column += 2) {
      apply(AugmentOp(int(row_[column])), row_[column + 1]);
    }
    write_image(image);
    erase(image);
    if (p_.teacher_size > 0) write_teacher(image, teacher);
  }

 private:
  static constexpr int kStrip = Team::kStrip;
  static_assert(kPlaneAlignment % kStrip == 0, "a strip must not cross the end of a row");
  using Strip = Bytes<kStrip>;
  using Read = typename Team::template Read<Strip>;

  LGFAST_TEAM int plan_int(int column) const { return int(row_[column]); }
  LGFAST_TEAM int num_strips() const { return (size_ + kStrip - 1) / kStrip; }

  // Red, green, blue, spare.
  LGFAST_TEAM uint8_t* plane(int c) const { return planes_ + c * (size_ * pitch_); }

  // f(c, y, s) for every strip of the first num_rows rows of every channel; an item is a strip.
  template <typename F>
  LGFAST_TEAM void each_strip(int num_rows, const F& f) const {
    team_.grid(3 * num_rows, num_strips(), [&](int row, int s) {
      const int c = (row >= num_rows) + (row >= 2 * num_rows);
      f(c, row - c * num_rows, s);
    });
  }

  // The same for all S rows; on the GPU an item is a strip of three channels, which share what follows from y and s.
  template <typename F>
  LGFAST_TEAM void each_pixel_strip(const F& f) const {
    if (Team::kAffinePixels > 1) return each_strip(size_, f);
    team_.grid(size_, num_strips(), [&](int y, int s) {
      for (int c = 0; c < 3; ++c) f(c, y, s);
    });
  }

  LGFAST_TEAM Strip& strip(uint8_t* plane, int y, int s) const {
    return *reinterpret_cast<Strip*>(plane + int64_t(y) * pitch_ + s * kStrip);
  }

  // ---- crop, resize, shift, flip ----

  // Fills the planes. Output pixel (y, x) shows resized pixel (y + shift_y, x' + shift_x), x' = x or mirrored; black
  // where that lies outside.
  LGFAST_TEAM void resize_crop(int64_t index) {
    const int shift_y = plan_int(kShiftY);
    const ResizeAxis vertical = {p_.resample, plan_int(kCropHeight), size_};
    const ResizeAxis horizontal = {p_.resample, plan_int(kCropWidth), size_};
    const int64_t width = p_.sizes[2 * index + 1];
    const uint8_t* crop =
        p_.pixels + p_.offsets[index] + (int64_t(plan_int(kCropTop)) * width + plan_int(kCropLeft)) * 3;
    if (shift_y != 0 || plan_int(kShiftX) != 0) {
      each_strip(size_, [&](int c, int y, int s) { strip(plane(c), y, s) = Strip{}; });
      each_strip(spare_rows_, [&](int c, int y, int s) { strip(spare_channel(c), y, s) = Strip{}; });
    }
    const int begin = shift_y > 0 ? shift_y : 0, end = shift_y < 0 ? size_ + shift_y : size_;
    const int band = band_rows(vertical), chunk = clamp(kWeightCapacity / horizontal.max_taps(), 1, size_);
    for (int low = begin; low < end; low += band) {
      const int high = low + band < end ? low + band : end;
      const int first = resize_range(vertical, low).first;
      const TapSpan last = resize_range(vertical, high - 1);
      for (int left = 0; left < size_; left += chunk) {
        const int right = left + chunk < size_ ? left + chunk : size_;
        weigh(horizontal, left, right, vertical, low, left == 0 ? high : low);
        resize_rows(horizontal, left, right, crop + first * width * 3, width, last.first + last.count - first);
      }
      resize_columns(vertical, low, high, first, shift_y);
    }
  }

  // Output rows whose source rows fit into the spare, and their weights into memory; at least 1.
  LGFAST_TEAM int band_rows(const ResizeAxis& vertical) const {
    if (vertical.enlarges() && vertical.in <= spare_rows_ && kWeightCapacity >= kEnlargingTaps * size_) return size_;
    const double free_rows = spare_rows_ - 2 * vertical.support() - 2;
    const int fitting = clamp(int(free_rows / vertical.scale()) + 1, 1, size_);
    const int weighable = kWeightCapacity / vertical.max_taps();
    return fitting < weighable ? fitting : clamp(weighable, 1, size_);
  }

  LGFAST_TEAM int* row_weights() const { return weights_ + kWeightCapacity; }
  LGFAST_TEAM TapSpan* row_taps() const { return taps_ + size_; }

  // Taps and weights of the output columns left ... right - 1 and, at the same time, of the rows low ... high - 1.
  LGFAST_TEAM void weigh(const ResizeAxis& horizontal, int left, int right, const ResizeAxis& vertical, int low,
                         int high) {
    const int num_columns = right - left;
    team_.each(num_columns + high - low, [&](int i) {
      const bool is_row = i >= num_columns;
      const int k = is_row ? i - num_columns : i;
      const ResizeAxis axis = is_row ? vertical : horizontal;
      int* weights = is_row ? row_weights() : weights_;
      TapSpan* taps = is_row ? row_taps() : taps_;
      taps[k] = resize_taps(axis, k + (is_row ? low : left), weights + k * axis.max_taps());
    });
  }

  // num_rows rows of the crop, their output columns left ... right - 1, into the spare: [3, spare_rows, pitch].
  LGFAST_TEAM void resize_rows(const ResizeAxis& axis, int left, int right, const uint8_t* crop, int64_t width,
                               int num_rows) {
    const int stride = axis.max_taps(), shift = plan_int(kShiftX);
    const bool is_flipped = row_[kFlip] != 0;
    team_.grid(num_rows, right - left, [&](int y, int i) {
      const int shifted = left + i - shift;
      if (shifted < 0 || shifted >= size_) return;
      const TapSpan taps = taps_[i];
      const int* weight = weights_ + i * stride;
      const uint8_t* pixel = crop + (y * width + taps.first) * 3;
      int sum[3] = {kFixedHalf, kFixedHalf, kFixedHalf};
      if (Team::kHeldRows > 0 && axis.enlarges()) {
        const Weights weights = reinterpret_cast<const Weights*>(weights_)[i];
        for (int k = 0; k < kEnlargingTaps; ++k) {
          for (int c = 0; c < 3 && k < taps.count; ++c) sum[c] += pixel[3 * k + c] * weights.value[k];
        }
      } else {
        for (int k = 0; k < taps.count; ++k) {
          for (int c = 0; c < 3; ++c) sum[c] += pixel[3 * k + c] * weight[k];
        }
      }
      uint8_t* out = plane(3) + y * pitch_ + (is_flipped ? size_ - 1 - shifted : shifted);
      for (int c = 0; c < 3; ++c) out[c * spare_rows_ * pitch_] = from_fixed(sum[c]);
    });
  }

  LGFAST_TEAM uint8_t* spare_channel(int c) const { return plane(3) + c * spare_rows_ * pitch_; }

  // Resized rows low ... high - 1 from the spare, whose first row is the crop's row `first`.
  LGFAST_TEAM void resize_columns(const ResizeAxis& axis, int low, int high, int first, int shift) {
    const int stride = axis.max_taps(), num_rows = high - low;
    if (Team::kHeldRows > 0 && axis.enlarges()) return enlarge_columns(low, num_rows, first, shift);
    each_strip(num_rows, [&](int c, int i, int s) {
      const TapSpan taps = row_taps()[i];
      const int* weight = row_weights() + i * stride;
      int sum[kStrip];
      for (int l = 0; l < kStrip; ++l) sum[l] = kFixedHalf;
      for (int k = 0; k < taps.count; ++k) {
        const Read source = strip(spare_channel(c), taps.first - first + k, s);
        for (int l = 0; l < kStrip; ++l) sum[l] += source.value[l] * weight[k];
      }
      team_.pack(sum, strip(plane(c), low + i - shift, s));
    });
  }

  // The same for a crop that is enlarged: a thread makes neighbouring rows, and most of them share their source rows.
  // Rows beyond taps.count are read and weigh nothing; past the last channel's they lie in the memory of the weights.
  LGFAST_TEAM void enlarge_columns(int low, int num_rows, int first, int shift) {
    constexpr int kRows = Team::kHeldRows > 0 ? Team::kHeldRows : 1;
    each_strip((num_rows + kRows - 1) / kRows, [&](int c, int group, int s) {
      int source[kEnlargingTaps][kStrip], held = -1;
      const int end = (group + 1) * kRows < num_rows ? (group + 1) * kRows : num_rows;
      LGFAST_NO_UNROLL
      for (int i = group * kRows; i < end; ++i) {
        const int row = row_taps()[i].first;
        if (row != held) {
          for (int k = 0; k < kEnlargingTaps; ++k) {
            const Read read = strip(spare_channel(c), row - first + k, s);
            for (int l = 0; l < kStrip; ++l) source[k][l] = read.value[l];
          }
          held = row;
        }
        const Weights weights = reinterpret_cast<const Weights*>(row_weights())[i];
        int sum[kStrip];
        for (int l = 0; l < kStrip; ++l) sum[l] = kFixedHalf;
        for (int k = 0; k < kEnlargingTaps; ++k) {
          for (int l = 0; l < kStrip; ++l) sum[l] += source[k][l] * weights.value[k];
        }
        team_.pack(sum, strip(plane(c), low + i - shift, s));
      }
    });
  }

  // ---- RandAugment ----

  LGFAST_TEAM void apply(AugmentOp op, double argument) {
    switch (op) {
      case AugmentOp::kSkip: return;
      case AugmentOp::kAutoContrast:
      case AugmentOp::kEqualize: return stretch(op);
      case AugmentOp::kColor: return blend_with_luma(float(argument));
      case AugmentOp::kSharpness: return sharpen(float(argument));
      case AugmentOp::kRotate:
      case AugmentOp::kShearX:
      case AugmentOp::kShearY:
      case AugmentOp::kTranslateX:
      case AugmentOp::kTranslateY: return transform(affine_of(op, argument, size_));
      default: break;
    }
    const int mean = op == AugmentOp::kContrast ? mean_luma() : 0;
    team_.each(kTableSize, [&](int i) { lut_[i] = point_value(op, pending(i), argument, mean); });
    is_pending_ = true;
  }

  // What channel i / 256 shows for the plane's value i % 256.
  LGFAST_TEAM int pending(int i) const { return is_pending_ ? lut_[i] : i & 255; }

  LGFAST_TEAM void apply_pending() {
    if (!is_pending_) return;
    each_pixel_strip([&](int c, int y, int s) {
      Strip& values = strip(plane(c), y, s);
      const uint8_t* lut = lut_ + c * 256;
      team_.write(values.value, [&](int l) { return lut[values.value[l]]; });
    });
    is_pending_ = false;
  }

  LGFAST_TEAM int mean_luma() {
    apply_pending();
    team_.each(1, [&](int) { *total_ = 0; });
    uint32_t sum = 0;
    team_.grid(size_, num_strips(), [&](int y, int s) {
      const Read r = strip(plane(0), y, s), g = strip(plane(1), y, s), b = strip(plane(2), y, s);
      for (int l = 0; l < kStrip; ++l) {
        sum += s * kStrip + l < size_ ? luma(r.value[l], g.value[l], b.value[l]) : 0;
      }
    });
    team_.add_to_total(total_, sum);
    return int(double(*total_) / (double(size_) * size_) + 0.5);
  }

  LGFAST_TEAM void stretch(AugmentOp op) {
    apply_pending();
    team_.each(kTableSize, [&](int i) { histogram_[i] = 0; });
    each_pixel_strip([&](int c, int y, int s) {
      const Read values = strip(plane(c), y, s);
      for (int l = 0; l < kStrip && s * kStrip + l < size_; ++l) {
        team_.add(histogram_ + c * 256 + values.value[l], 1);
      }
    });
    const uint32_t* num_darker = scan_histogram();
    team_.each(kTableSize, [&](int i) {
      const int value = i & 255;
      const ValueRange range = ranges_[i / 256];
      const uint32_t rest = size_ * size_ - histogram_[i - value + range.high];
      lut_[i] = op == AugmentOp::kEqualize ? equalized_value(value, num_darker[i], rest)
                                           : autocontrast_value(value, range.low, range.high);
    });
    is_pending_ = true;
  }

  // Of every value of every channel the number of darker pixels; fills ranges_. In the memory of the weights.
  LGFAST_TEAM const uint32_t* scan_histogram() {
    constexpr int kGroup = 16;  // values added up at once: every thread adds at most two times 15 numbers
    uint32_t* num_darker = reinterpret_cast<uint32_t*>(weights_);
    uint32_t* group_sum = num_darker + kTableSize;
    team_.each(kTableSize / kGroup, [&](int i) {
      uint32_t sum = 0;
      for (int k = 0; k < kGroup; ++k) sum += histogram_[i * kGroup + k];
      group_sum[i] = sum;
    });
    team_.each(kTableSize, [&](int i) {
      const int group = i / kGroup;
      uint32_t sum = 0;
      for (int k = i / 256 * (256 / kGroup); k < group; ++k) sum += group_sum[k];
      for (int k = group * kGroup; k < i; ++k) sum += histogram_[k];
      num_darker[i] = sum;
      if (histogram_[i] == 0) return;
      if (sum == 0) ranges_[i / 256].low = i & 255;
      if (sum + histogram_[i] == uint32_t(size_ * size_)) ranges_[i / 256].high = i & 255;
    });
    return num_darker;
  }

  LGFAST_TEAM void blend_with_luma(float factor) {
    apply_pending();
    team_.grid(size_, num_strips(), [&](int y, int s) {
      Strip &r = strip(plane(0), y, s), &g = strip(plane(1), y, s), &b = strip(plane(2), y, s);
      int gray[kStrip];
      for (int l = 0; l < kStrip; ++l) gray[l] = luma(r.value[l], g.value[l], b.value[l]);
      team_.write(r.value, [&](int l) { return blend(gray[l], r.value[l], factor); });
      team_.write(g.value, [&](int l) { return blend(gray[l], g.value[l], factor); });
      team_.write(b.value, [&](int l) { return blend(gray[l], b.value[l], factor); });
    });
  }

  LGFAST_TEAM void sharpen(float factor) {
    apply_pending();
    each_pixel_strip([&](int c, int y, int s) {
      const bool is_edge_row = y == 0 || y == size_ - 1;
      Strip out;
      const uint8_t* center = plane(c) + y * pitch_;
      const uint8_t* above = is_edge_row ? center : center - pitch_;
      const uint8_t* below = is_edge_row ? center : center + pitch_;
      const int x = s * kStrip;
      int smoothed[kStrip];
      for (int l = 0; l < kStrip; ++l) {  // the first row's left neighbour is memory before it, read and not used
        const int i = x + l;
        smoothed[l] = smooth(above[i - 1] + above[i] + above[i + 1] + center[i - 1] + center[i] + center[i + 1] +
                                 below[i - 1] + below[i] + below[i + 1],
                             center[i]);
      }
      for (int l = 0; l < kStrip; ++l) {
        const bool is_edge = is_edge_row | (x + l == 0) | (x + l >= size_ - 1);
        out.value[l] = blend(is_edge ? center[x + l] : smoothed[l], center[x + l], factor);
      }
      if (size_ % kStrip == 0) {
        *reinterpret_cast<Strip*>(moved(c, y, x)) = out;
      } else {
        copy_first(out.value, size_ - x, moved(c, y, x));
      }
    });
    take_moved();
  }

  LGFAST_TEAM void transform(const Affine& a) {
    constexpr int kPixels = Team::kAffinePixels;
    if (p_.resample != Resample::kBicubic) return move_pixels<AffinePixels<kPixels>>(a);
    if (a.keeps_y()) return move_pixels<BicubicLinePixels<true, kPixels>>(a);
    if (a.keeps_x()) return move_pixels<BicubicLinePixels<false, kPixels>>(a);
    move_pixels<BicubicPixels<kPixels>>(a);
  }

  // Pixels: of kAffinePixels neighbours, a strip, or on the GPU one pixel, so that neighbouring threads read
  // neighbouring bytes; a thread makes kStrip pixels of a row, which share what follows from y.
  template <typename Pixels>
  LGFAST_TEAM void move_pixels(const Affine& a) {
    constexpr int kPixels = Team::kAffinePixels;
    apply_pending();
    team_.grid(size_, num_strips(), [&](int y, int s) {
      LGFAST_NO_UNROLL
      for (int l = 0; l < kStrip / kPixels; ++l) {
        const int x = kPixels * (s + l * num_strips());
        if (x >= size_) break;
        const Pixels pixels(a, p_.resample, x, y, size_, pitch_);
        uint8_t* out = moved(0, y, x);
        for (int c = 0; c < 3; ++c, out += size_ * size_) {
          uint8_t made[kPixels];
          pixels.make(plane(c), p_.fill[c], made);
          copy_first(made, size_ - x, out);
        }
      }
    });
    take_moved();
  }

  // Operations on neighbours write their bytes where the finished image will be, dense, and take them back from there:
  // shared memory has no room for three more planes.
  LGFAST_TEAM uint8_t* moved(int c, int y, int x) const { return moved_ + (c * size_ + y) * size_ + x; }

  LGFAST_TEAM void take_moved() {
    each_pixel_strip([&](int c, int y, int s) {
      const uint8_t* from = moved(c, y, s * kStrip);
      Strip& to = strip(plane(c), y, s);
      if (size_ % kStrip == 0) {
        to = *reinterpret_cast<const Strip*>(from);
      } else {
        for (int l = 0; l < kStrip; ++l) to.value[l] = s * kStrip + l < size_ ? from[l] : 0;
      }
    });
  }

  // ---- output ----

  template <typename T>
  LGFAST_TEAM void write_image(T* image) {
    T* table = reinterpret_cast<T*>(histogram_);  // of normalised values
    team_.each(kTableSize, [&](int i) {
      table[i] = from_float<T>((float(pending(i)) / 255.0f - p_.mean[i / 256]) / p_.std[i / 256]);
    });
    const bool is_dense = p_.column_stride == 1 && size_ % kStrip == 0;
    const int channel_stride = p_.channel_stride, row_stride = p_.row_stride, column_stride = p_.column_stride;
    each_pixel_strip([&](int c, int y, int s) {
      const Read values = strip(plane(c), y, s);
      const T* shown = table + c * 256;
      T* out = image + (c * channel_stride + y * row_stride + s * kStrip * column_stride);
      if (is_dense) {
        team_.write(out, [&](int l) { return shown[values.value[l]]; });
      } else {
        const int count = size_ - s * kStrip < kStrip ? size_ - s * kStrip : kStrip;
        for (int l = 0; l < count; ++l) out[l * column_stride] = shown[values.value[l]];
      }
    });
  }

  template <typename T>
  LGFAST_TEAM void erase(T* image) {
    const int height = plan_int(kEraseHeight), width = plan_int(kEraseWidth);
    if (height == 0 || width == 0) return;
    const uint32_t key0 = uint32_t(row_[kNoiseKey0]), key1 = uint32_t(row_[kNoiseKey1]);
    T* corner = image + plan_int(kEraseTop) * p_.row_stride + plan_int(kEraseLeft) * p_.column_stride;
    team_.grid(height, (width + kStrip - 1) / kStrip, [&](int y, int s) {
      float noise[3][kStrip] = {};
      if (p_.erase_mode != EraseMode::kConst) {
        const uint32_t first = y * width + s * kStrip, step = p_.erase_mode == EraseMode::kPixel;
        for (int l = 0; l < kStrip; ++l) {
          const Noise drawn = noise_pixel(key0, key1, step * (first + l));
          noise[0][l] = drawn.channel[0];
          noise[1][l] = drawn.channel[1];
          noise[2][l] = drawn.channel[2];
        }
      }
      const int count = width - s * kStrip < kStrip ? width - s * kStrip : kStrip;
      T* out = corner + y * p_.row_stride + s * kStrip * p_.column_stride;
      for (int c = 0; c < 3; ++c) {
        for (int l = 0; l < count; ++l) out[c * p_.channel_stride + l * p_.column_stride] = from_float<T>(noise[c][l]);
      }
    });
  }

  // Bilinear without antialiasing from the finished image; a source coordinate that is a whole number copies.
  template <typename T>
  LGFAST_TEAM void write_teacher(const T* image, T* teacher) {
    const float scale = float(size_) / float(p_.teacher_size);
    team_.grid(p_.teacher_size, p_.teacher_size, [&](int y, int x) {
      const float Y = source_coordinate(y, scale), X = source_coordinate(x, scale);
      const int y0 = int(Y), x0 = int(X);
      const int64_t down = y0 < size_ - 1 ? p_.row_stride : 0, right = x0 < size_ - 1 ? p_.column_stride : 0;
      const float wy = Y - y0, wx = X - x0;
      for (int c = 0; c < 3; ++c) {
        const T* source = image + c * p_.channel_stride + y0 * p_.row_stride + x0 * p_.column_stride;
        const float upper = mix(to_float(source[0]), to_float(source[right]), wx);
        const float lower = mix(to_float(source[down]), to_float(source[down + right]), wx);
        teacher[c * p_.teacher_channel_stride + y * p_.teacher_row_stride + x * p_.teacher_column_stride] =
            from_float<T>(mix(upper, lower, wy));
      }
    });
  }

  LGFAST_TEAM static float source_coordinate(int position, float scale) {
    const float coordinate = (position + 0.5f) * scale - 0.5f;
    return coordinate < 0 ? 0 : coordinate;
  }
  LGFAST_TEAM static float mix(float a, float b, float weight) {
    return weight == 0 ? a : (1 - weight) * a + weight * b;
  }

  const Team& team_;
  const AugmentParams& p_;
  const AugmentLayout& layout_;
  const int size_, pitch_, spare_rows_;
  uint8_t* planes_;
  int* weights_;         // of the output columns, then of the rows
  TapSpan* taps_;        // [2, S], likewise
  uint32_t* histogram_;  // [3, 256]; the table of normalised values in the end
  uint8_t* lut_;         // pending table, [3, 256]
  ValueRange* ranges_;   // [3]
  uint32_t* total_;
  uint8_t* moved_ = nullptr;     // bytes [3, S, S] where the image will be
  const double* row_ = nullptr;  // this image's row of the plan
  bool is_pending_ = false;
};

}  // namespace lgfast
