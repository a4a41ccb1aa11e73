// One image of the batch, from its uint8 pixels and its row of the plan to the normalised output: the whole algorithm,
// for a team that is one CPU thread or one CUDA block.
//
// Memory: three planes [S, pitch] of uint8 and a spare. The resize makes the crop's rows S wide in the spare (all three
// channels), then columns S tall into the planes, in bands where the crop is tall. An operation that looks at
// neighbours writes one channel into the spare, which then becomes that channel. Operations that look at one value only
// are kept as a pending lookup table per channel, applied by whoever reads the planes next: most views need no pass for
// them. Work is dealt out in strips of kStrip neighbouring pixels of a row: a SIMD loop on the CPU, 4-byte accesses on
// the GPU.
//
// Team: kStrip; Read<Strip>, how a strip is read: copied, or in place; each(n, f(i)); grid(rows, columns, f(y, x));
// add(counter, value); add_to_total(counter, value).
// each and grid end with a barrier of the team.
#pragma once

#include "augment/noise.h"
#include "augment/pixel_ops.h"

#if defined(__CUDACC__)
#define LGFAST_TEAM __device__ __forceinline__
#else
#define LGFAST_TEAM inline
#endif

namespace lgfast {

constexpr int kPlaneAlignment = 32;        // rows start at multiples of it; at least every team's kStrip
constexpr int kMinSpareBytes = 56 * 1024;  // with 3 planes of 224 x 224 this fills an H100's shared memory
constexpr int kWeightCapacity = 2048;      // resize weights in memory at a time
constexpr int kTableSize = 3 * 256;

// Byte offsets of the working memory of one image.
struct AugmentLayout {
  int size, pitch, spare_rows;  // spare_rows: rows of all three channels that the spare holds
  int64_t planes, spare, weights, taps, histogram, lut, fresh_lut, table, total, num_bytes;
};

LGFAST_HOST_DEVICE AugmentLayout augment_layout(int size) {
  AugmentLayout l;
  l.size = size;
  l.pitch = (size + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
  const int64_t plane = int64_t(size) * l.pitch;
  const int64_t spare_bytes = plane > kMinSpareBytes ? plane : kMinSpareBytes;
  l.spare_rows = int(spare_bytes / (3 * l.pitch));
  l.planes = kPlaneAlignment;  // sharpening reads one byte before the first row
  l.spare = l.planes + 3 * plane;
  l.weights = l.spare + spare_bytes;
  l.taps = l.weights + kWeightCapacity * sizeof(int);
  l.histogram = l.taps + int64_t(size) * sizeof(TapSpan);
  l.table = l.histogram;  // never needed at the same time
  l.lut = l.histogram + kTableSize * sizeof(uint32_t);
  l.fresh_lut = l.lut + kTableSize;
  l.total = l.fresh_lut + kTableSize;
  l.num_bytes = (l.total + int64_t(sizeof(uint32_t)) + 127) / 128 * 128;
  return l;
}

// Whether one output row's source rows fit into the spare, and one output pixel's weights into memory.
LGFAST_HOST_DEVICE bool crop_fits(const AugmentLayout& layout, Resample resample, int height, int width) {
  const int down = ResizeAxis{resample, height, layout.size}.max_taps();
  const int across = ResizeAxis{resample, width, layout.size}.max_taps();
  return down <= layout.spare_rows && down <= kWeightCapacity && across <= kWeightCapacity;
}

template <int kSize>
struct alignas(kSize) Bytes {
  uint8_t value[kSize];
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
    table_ = reinterpret_cast<float*>(memory + layout.table);
    lut_ = memory + layout.lut;
    fresh_lut_ = memory + layout.fresh_lut;
    total_ = reinterpret_cast<uint32_t*>(memory + layout.total);
  }

  template <typename T>
  LGFAST_TEAM void run(int64_t b) {
    row_ = p_.plan + b * p_.num_columns;
    for (int c = 0; c < 4; ++c) plane_[c] = planes_ + c * int64_t(size_) * pitch_;
    T* image = static_cast<T*>(p_.images) + b * 3 * size_ * size_;
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
  LGFAST_TEAM int num_strips() const { return pitch_ / kStrip; }
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
      team_.grid(3 * size_, num_strips(), [&](int y, int s) { strip(plane_[0], y, s) = Strip{}; });
      team_.grid(3 * spare_rows_, num_strips(), [&](int y, int s) { strip(plane_[3], y, s) = Strip{}; });
    }
    const int begin = shift_y > 0 ? shift_y : 0, end = shift_y < 0 ? size_ + shift_y : size_;
    const int band = band_rows(vertical);
    for (int low = begin; low < end; low += band) {
      const int high = low + band < end ? low + band : end;
      const int first = resize_range(vertical, low).first;
      const TapSpan last = resize_range(vertical, high - 1);
      resize_rows(horizontal, crop + first * width * 3, width, last.first + last.count - first);
      resize_columns(vertical, low, high, first, shift_y);
    }
  }

  // Output rows whose source rows fit into the spare, and their weights into memory; at least 1.
  LGFAST_TEAM int band_rows(const ResizeAxis& vertical) const {
    const double free_rows = spare_rows_ - 2 * vertical.support() - 2;
    const int fitting = clamp(int(free_rows / vertical.scale()) + 1, 1, size_);
    const int weighable = kWeightCapacity / vertical.max_taps();
    return fitting < weighable ? fitting : clamp(weighable, 1, size_);
  }

  // num_rows rows of the crop, S wide, into the spare: [3, spare_rows, pitch].
  LGFAST_TEAM void resize_rows(const ResizeAxis& axis, const uint8_t* crop, int64_t width, int num_rows) {
    const int stride = axis.max_taps(), chunk = clamp(kWeightCapacity / stride, 1, size_);
    const int shift = plan_int(kShiftX);
    const bool is_flipped = row_[kFlip] != 0;
    const int64_t channel = int64_t(spare_rows_) * pitch_;
    for (int low = 0; low < size_; low += chunk) {
      const int high = low + chunk < size_ ? low + chunk : size_;
      team_.each(high - low, [&](int i) { taps_[i] = resize_taps(axis, low + i, weights_ + i * stride); });
      team_.grid(num_rows, high - low, [&](int y, int i) {
        const int shifted = low + i - shift;
        if (shifted < 0 || shifted >= size_) return;
        const TapSpan taps = taps_[i];
        const int* weight = weights_ + i * stride;
        const uint8_t* pixel = crop + (y * width + taps.first) * 3;
        int sum[3] = {kFixedHalf, kFixedHalf, kFixedHalf};
        for (int k = 0; k < taps.count; ++k) {
          for (int c = 0; c < 3; ++c) sum[c] += pixel[3 * k + c] * weight[k];
        }
        uint8_t* out = plane_[3] + y * pitch_ + (is_flipped ? size_ - 1 - shifted : shifted);
        for (int c = 0; c < 3; ++c) out[c * channel] = from_fixed(sum[c]);
      });
    }
  }

  // Resized rows low ... high - 1 from the spare, whose first row is the crop's row `first`.
  LGFAST_TEAM void resize_columns(const ResizeAxis& axis, int low, int high, int first, int shift) {
    const int stride = axis.max_taps(), num_rows = high - low;
    team_.each(num_rows, [&](int i) { taps_[i] = resize_taps(axis, low + i, weights_ + i * stride); });
    team_.grid(3 * num_rows, num_strips(), [&](int channel_row, int s) {
      const int c = channel_row / num_rows, i = channel_row % num_rows;
      const TapSpan taps = taps_[i];
      const int* weight = weights_ + i * stride;
      int sum[kStrip];
      for (int l = 0; l < kStrip; ++l) sum[l] = kFixedHalf;
      for (int k = 0; k < taps.count; ++k) {
        const Read source = strip(plane_[3], c * spare_rows_ + taps.first - first + k, s);
        for (int l = 0; l < kStrip; ++l) sum[l] += source.value[l] * weight[k];
      }
      Strip out;
      for (int l = 0; l < kStrip; ++l) out.value[l] = from_fixed(sum[l]);
      strip(plane_[c], low + i - shift, s) = out;
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
    team_.grid(3 * size_, num_strips(), [&](int channel_row, int s) {
      Strip& values = strip(plane_[channel_row / size_], channel_row % size_, s);
      const uint8_t* lut = lut_ + channel_row / size_ * 256;
      for (int l = 0; l < kStrip; ++l) values.value[l] = lut[values.value[l]];
    });
    is_pending_ = false;
  }

  LGFAST_TEAM int mean_luma() {
    apply_pending();
    team_.each(1, [&](int) { *total_ = 0; });
    uint32_t sum = 0;
    team_.grid(size_, num_strips(), [&](int y, int s) {
      const Read r = strip(plane_[0], y, s), g = strip(plane_[1], y, s), b = strip(plane_[2], y, s);
      for (int l = 0; l < kStrip; ++l) {
        sum += s * kStrip + l < size_ ? luma(r.value[l], g.value[l], b.value[l]) : 0;
      }
    });
    team_.add_to_total(total_, sum);
    return int(double(*total_) / (double(size_) * size_) + 0.5);
  }

  LGFAST_TEAM void stretch(AugmentOp op) {
    team_.each(kTableSize, [&](int i) { histogram_[i] = 0; });
    team_.grid(3 * size_, num_strips(), [&](int channel_row, int s) {
      const int c = channel_row / size_;
      const Read values = strip(plane_[c], channel_row % size_, s);
      for (int l = 0; l < kStrip && s * kStrip + l < size_; ++l) {
        team_.add(histogram_ + c * 256 + pending(c * 256 + values.value[l]), 1);
      }
    });
    team_.each(3, [&](int c) {
      if (op == AugmentOp::kEqualize) {
        equalize_table(histogram_ + c * 256, fresh_lut_ + c * 256);
      } else {
        autocontrast_table(histogram_ + c * 256, fresh_lut_ + c * 256);
      }
    });
    team_.each(kTableSize, [&](int i) { lut_[i] = fresh_lut_[(i & ~255) + pending(i)]; });
    is_pending_ = true;
  }

  LGFAST_TEAM void blend_with_luma(float factor) {
    apply_pending();
    team_.grid(size_, num_strips(), [&](int y, int s) {
      Strip &r = strip(plane_[0], y, s), &g = strip(plane_[1], y, s), &b = strip(plane_[2], y, s);
      for (int l = 0; l < kStrip; ++l) {
        const int gray = luma(r.value[l], g.value[l], b.value[l]);
        r.value[l] = blend(gray, r.value[l], factor);
        g.value[l] = blend(gray, g.value[l], factor);
        b.value[l] = blend(gray, b.value[l], factor);
      }
    });
  }

  LGFAST_TEAM void swap_with_spare(int c) {
    uint8_t* done = plane_[3];
    plane_[3] = plane_[c];
    plane_[c] = done;
  }

  LGFAST_TEAM void sharpen(float factor) {
    apply_pending();
    for (int c = 0; c < 3; ++c) {
      const uint8_t* plane = plane_[c];
      team_.grid(size_, num_strips(), [&](int y, int s) {
        const bool is_edge_row = y == 0 || y == size_ - 1;
        Strip out;
        const uint8_t* center = plane + y * pitch_;
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
        strip(plane_[3], y, s) = out;
      });
      swap_with_spare(c);
    }
  }

  LGFAST_TEAM void transform(const Affine& a) {
    apply_pending();
    for (int c = 0; c < 3; ++c) {
      const uint8_t* plane = plane_[c];
      team_.grid(size_, num_strips(), [&](int y, int s) {
        Strip out;
        const int x = s * kStrip;
        if (p_.resample == Resample::kBicubic) {
          affine_bicubic<kStrip>(a, plane, size_, pitch_, x, y, p_.fill[c], out.value);
        } else {
          for (int l = 0; l < kStrip; ++l) {
            out.value[l] = affine_pixel(a, p_.resample, plane, size_, pitch_, x + l, y, p_.fill[c]);
          }
        }
        strip(plane_[3], y, s) = out;
      });
      swap_with_spare(c);
    }
  }

  // ---- output ----

  template <typename T>
  LGFAST_TEAM void write_image(T* image) {
    team_.each(kTableSize,
               [&](int i) { table_[i] = (float(pending(i)) / 255.0f - p_.mean[i / 256]) / p_.std[i / 256]; });
    team_.grid(3 * size_, num_strips(), [&](int channel_row, int s) {
      const int c = channel_row / size_, y = channel_row % size_;
      const Read values = strip(plane_[c], y, s);
      const float* table = table_ + c * 256;
      T* out = image + c * p_.channel_stride + y * p_.row_stride + s * kStrip * p_.column_stride;
      const int count = size_ - s * kStrip < kStrip ? size_ - s * kStrip : kStrip;
      if (p_.column_stride == 1 && count == kStrip) {
        for (int l = 0; l < kStrip; ++l) out[l] = from_float<T>(table[values.value[l]]);
      } else {
        for (int l = 0; l < count; ++l) out[l * p_.column_stride] = from_float<T>(table[values.value[l]]);
      }
    });
  }

  template <typename T>
  LGFAST_TEAM void erase(T* image) {
    const int height = plan_int(kEraseHeight), width = plan_int(kEraseWidth);
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
  uint8_t* plane_[4];  // red, green, blue, spare; in another order after operations on neighbours
  int* weights_;
  TapSpan* taps_;
  uint32_t* histogram_;
  float* table_;  // normalised values, [3, 256]
  uint8_t* lut_;  // pending table, [3, 256]
  uint8_t* fresh_lut_;
  uint32_t* total_;
  const double* row_ = nullptr;  // this image's row of the plan
  bool is_pending_ = false;
};

}  // namespace lgfast
