// Pillow's arithmetic on 8-bit pixels, for host and device: the CPU kernel that the tests compare with Pillow bit for
// bit is the code the GPU runs. Compile without contraction of a * b + c: Pillow's x86 wheels have none.
#pragma once

#include <cmath>
#include <cstdint>

#include "augment/augment.h"
#include "common/float16.h"

#if defined(__CUDA_ARCH__) || defined(LGFAST_EMULATION)
#define LGFAST_DEVICE
#include "common/device.cuh"
#endif

namespace lgfast {

LGFAST_HOST_DEVICE int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// ---- resize: separable, fixed point, taps limited to the crop and normalised
// -----------------------------------------

constexpr int kWeightBits = 22;    // 32 - 8 bits of pixel - 2 bits for negative weights and overshoot
constexpr int kEnlargingTaps = 4;  // of every filter; rounding may let a fifth pixel in, whose weight is 0

struct TapSpan {
  int first, count;  // input pixels first ... first + count - 1
};

// One axis of a resize from `in` to `out` pixels.
struct ResizeAxis {
  Resample resample;
  int in, out;
  LGFAST_HOST_DEVICE double scale() const { return double(in) / out; }
  LGFAST_HOST_DEVICE double filter_scale() const { return scale() < 1.0 ? 1.0 : scale(); }
  LGFAST_HOST_DEVICE double support() const {
    return (resample == Resample::kBicubic ? 2.0 : resample == Resample::kBilinear ? 1.0 : 0.0) * filter_scale();
  }
  LGFAST_HOST_DEVICE bool enlarges() const { return in <= out; }
  LGFAST_HOST_DEVICE int max_taps() const { return enlarges() ? kEnlargingTaps : int(ceil(support())) * 2 + 1; }
};

// Cubic with a = -0.5, triangle, or the one pixel of the nearest neighbour.
LGFAST_HOST_DEVICE double resize_filter(Resample resample, double x) {
  if (resample == Resample::kNearest) return 1.0;
  x = fabs(x);
  if (resample == Resample::kBilinear) return x < 1.0 ? 1.0 - x : 0.0;
  if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0.0;
}

LGFAST_HOST_DEVICE int to_fixed(double weight) { return int((weight < 0 ? -0.5 : 0.5) + weight * (1 << kWeightBits)); }

// Input pixels that output pixel `position` is made of.
LGFAST_HOST_DEVICE TapSpan resize_range(const ResizeAxis& axis, int position) {
  if (axis.resample == Resample::kNearest) {
    double source = axis.scale() * 0.5;  // Pillow steps along the axis, and its rounding errors add up
    for (int step = 0; step < position; ++step) source += axis.scale();
    return {clamp(int(source), 0, axis.in - 1), 1};
  }
  const double center = (position + 0.5) * axis.scale();
  const int low = int(center - axis.support() + 0.5);
  const int high = int(center + axis.support() + 0.5);
  const int first = low < 0 ? 0 : low;
  const int count = (high > axis.in ? axis.in : high) - first;
  return {first, axis.enlarges() && count > kEnlargingTaps ? kEnlargingTaps : count};
}

// The same, with their weights: max_taps() where the axis is enlarged, else count.
LGFAST_HOST_DEVICE TapSpan resize_taps(const ResizeAxis& axis, int position, int* weights) {
  const TapSpan range = resize_range(axis, position);
  const double center = (position + 0.5) * axis.scale();
  double sum = 0.0;
  if (axis.enlarges()) {
    double weight[kEnlargingTaps];
    for (int k = 0; k < kEnlargingTaps; ++k) {
      const double value = resize_filter(axis.resample, k + range.first - center + 0.5);
      weight[k] = k < range.count ? value : 0.0;
      sum += weight[k];
    }
    for (int k = 0; k < kEnlargingTaps; ++k) weights[k] = to_fixed(sum != 0.0 ? weight[k] / sum : weight[k]);
    return range;
  }
  const double inverse_scale = 1.0 / axis.filter_scale();
  for (int k = 0; k < range.count; ++k) {
    sum += resize_filter(axis.resample, (k + range.first - center + 0.5) * inverse_scale);
  }
  for (int k = 0; k < range.count; ++k) {
    const double weight = resize_filter(axis.resample, (k + range.first - center + 0.5) * inverse_scale);
    weights[k] = to_fixed(sum != 0.0 ? weight / sum : weight);
  }
  return range;
}

LGFAST_HOST_DEVICE uint8_t from_fixed(int sum) { return uint8_t(clamp(sum >> kWeightBits, 0, 255)); }
constexpr int kFixedHalf = 1 << (kWeightBits - 1);

// ---- operations on one value
// ------------------------------------------------------------------------------------------

LGFAST_HOST_DEVICE int luma(int r, int g, int b) { return (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16; }

// ImagingBlend: float arithmetic, truncated. factor 1 gives `image`, 0 gives `degenerate`.
LGFAST_HOST_DEVICE uint8_t blend(int degenerate, int image, float factor) {
  const float value = float(degenerate) + factor * float(image - degenerate);
  return uint8_t(int(value < 0.0f ? 0.0f : value > 255.0f ? 255.0f : value));
}

// The 3x3 smoothing [1 1 1; 1 5 1; 1 1 1] / 13, from the sum of all nine and the centre; no ties, since 13 is odd.
// 20165 / 2^18 divides every number up to 13 * 255 + 6 by 13.
LGFAST_HOST_DEVICE int smooth(int sum_of_nine, int center) { return ((sum_of_nine + 4 * center + 6) * 20165) >> 18; }

LGFAST_HOST_DEVICE uint8_t autocontrast_value(int value, int low, int high) {
  if (high <= low) return uint8_t(value);
  const double scale = 255.0 / (high - low);
  const double offset = -low * scale;
  return uint8_t(clamp(int(value * scale + offset), 0, 255));
}

// Operations whose result depends on the value and the plan's argument only.
LGFAST_HOST_DEVICE uint8_t point_value(AugmentOp op, int value, double argument, int mean_luma) {
  switch (op) {
    case AugmentOp::kInvert: return uint8_t(255 - value);
    case AugmentOp::kPosterize: {
      const int bits = int(argument);
      return bits <= 0 ? 0 : bits >= 8 ? uint8_t(value) : uint8_t(value & ~((1 << (8 - bits)) - 1));
    }
    case AugmentOp::kSolarize: return uint8_t(value < int(argument) ? value : 255 - value);
    case AugmentOp::kSolarizeAdd: return uint8_t(value < 128 ? clamp(value + int(argument), 0, 255) : value);
    case AugmentOp::kBrightness: return blend(0, value, float(argument));
    case AugmentOp::kContrast: return blend(mean_luma, value, float(argument));
    default: return uint8_t(value);
  }
}

// num_darker: pixels below the value; num_below_brightest: pixels below the channel's brightest value. The running sum
// starts at half a step.
LGFAST_HOST_DEVICE uint8_t equalized_value(int value, uint32_t num_darker, uint32_t num_below_brightest) {
  const uint32_t step = num_below_brightest / 255;
  if (step == 0) return uint8_t(value);
  const uint32_t level = (step / 2 + num_darker) / step;
  return uint8_t(level < 255 ? level : 255);
}

// ---- rotate, shear, translate: output pixel (x, y) shows source point M (x + 0.5, y + 0.5, 1)
// -------------------------

struct AffineLine {
  double x, y, shift;  // a source coordinate: x, y of the output pixel's centre, weighed, plus shift
  LGFAST_HOST_DEVICE double operator()(double x_center, double y_center) const {
    return x * x_center + y * y_center + shift;
  }
};
struct Affine {
  AffineLine x, y;
};

// Python's round(value, 15): nearest multiple of 1e-15, judged on the exact product.
LGFAST_HOST_DEVICE double round_15(double value) {
  const double product = value * 1e15;
  const double error = fma(value, 1e15, -product);
  double rounded = rint(product);
  const double rest = (product - rounded) + error;
  if (rest > 0.5) rounded += 1.0;
  if (rest < -0.5) rounded -= 1.0;
  return rounded / 1e15;
}

// Counter-clockwise by `degrees` about the centre of a size x size image.
LGFAST_HOST_DEVICE Affine rotation(double degrees, int size) {
  double positive = fmod(degrees, 360.0);  // Python's %: the result has the divisor's sign
  if (positive < 0) positive += 360.0;
  const double angle = -(positive * (3.141592653589793 / 180.0));
  const double cosine = round_15(cos(angle)), sine = round_15(sin(angle)), minus_sine = round_15(-sin(angle));
  const double center = size / 2.0;
  Affine a = {{cosine, sine, 0}, {minus_sine, cosine, 0}};
  a.x.shift = a.x.x * -center + a.x.y * -center + 0.0 + center;
  a.y.shift = a.y.x * -center + a.y.y * -center + 0.0 + center;
  return a;
}

LGFAST_HOST_DEVICE Affine affine_of(AugmentOp op, double argument, int size) {
  switch (op) {
    case AugmentOp::kShearX: return {{1, argument, 0}, {0, 1, 0}};
    case AugmentOp::kShearY: return {{1, 0, 0}, {argument, 1, 0}};
    case AugmentOp::kTranslateX: return {{1, 0, argument * size}, {0, 1, 0}};
    case AugmentOp::kTranslateY: return {{1, 0, 0}, {0, 1, argument * size}};
    default: return rotation(argument, size);
  }
}

#if defined(LGFAST_DEVICE)
// A GPU adds doubles at four times the rate at which it converts them: here conversions are additions to a double so
// large that its last bits are whole numbers. The results are those of the plain code below.
LGFAST_HOST_DEVICE double exact(int value) {
  const uint64_t bits = 0x4330000000000000u | (uint32_t(value) ^ 0x80000000u);  // 2^52 + 2^31 + value
  double shifted;
  memcpy(&shifted, &bits, sizeof(bits));
  return shifted - (0x1p52 + 0x1p31);
}
LGFAST_HOST_DEVICE double center_of(int pixel) {                          // pixel + 0.5
  const uint64_t bits = 0x4320000000000000u | (2 * uint32_t(pixel) + 1);  // 2^51 + pixel + 0.5
  double shifted;
  memcpy(&shifted, &bits, sizeof(bits));
  return shifted - 0x1p51;
}
LGFAST_HOST_DEVICE int floor_and_rest(double value, double& rest) {
  const double shifted = add_down(value, 0x1.8p52);
  rest = value - (shifted - 0x1.8p52);
  uint64_t bits;
  memcpy(&bits, &shifted, sizeof(bits));
  return int(uint32_t(bits));
}
LGFAST_HOST_DEVICE int truncated(double value) {
  double rest;
  return clamp(floor_and_rest(value, rest), 0, 255);
}
LGFAST_HOST_DEVICE int is_inside(double value, int size) {
  double rest;
  return uint32_t(floor_and_rest(value, rest)) < uint32_t(size);
}
// Pixels x ... x + 3 of a row, which starts at a multiple of 4 bytes, from two aligned words (instead of four bytes);
// reads at most 4 bytes behind them.
LGFAST_HOST_DEVICE uint32_t four_pixels(const uint8_t* row, int x) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(row + (x & ~3));
  return uint32_t((uint64_t(words[1]) << 32 | words[0]) >> (8 * (x & 3)));
}
#else
LGFAST_HOST_DEVICE double exact(int value) { return value; }
LGFAST_HOST_DEVICE double center_of(int pixel) { return pixel + 0.5; }
LGFAST_HOST_DEVICE int floor_and_rest(double value, double& rest) {
  const double low = floor(value);
  rest = value - low;
  return int(low);
}
// value clamped to 0 ... 255 and truncated.
LGFAST_HOST_DEVICE int truncated(double value) { return int(value < 0.0 ? 0.0 : value > 255.0 ? 255.0 : value); }
LGFAST_HOST_DEVICE int is_inside(double value, int size) { return (value >= 0) & (value < size); }
LGFAST_HOST_DEVICE uint32_t four_pixels(const uint8_t* row, int x) {
  uint32_t word;
  memcpy(&word, row + x, 4);
  return word;
}
#endif
LGFAST_HOST_DEVICE double exact(double value) { return value; }

// Cubic with a = -1 through four neighbours, d in [0, 1) from the second. T: int for pixels (exact, as in double).
template <typename T>
LGFAST_HOST_DEVICE double cubic(T v0, T v1, T v2, T v3, double d) {
  const T p2 = -v0 + v2;
  const T p3 = 2 * (v0 - v1) + v2 - v3;
  const T p4 = -v0 + v1 - v2 + v3;
  return exact(v1) + d * (exact(p2) + d * (exact(p3) + d * exact(p4)));
}

// The same for four pixels in the bytes of a word, the first one lowest.
LGFAST_HOST_DEVICE double cubic_of_word(uint32_t taps, double d) {
  return cubic(int(taps & 255), int((taps >> 8) & 255), int((taps >> 16) & 255), int(taps >> 24), d);
}

// Whether the four neighbours first - 1 ... first + 2 of all kCount pixels lie in 0 ... size - 1.
template <int kCount>
LGFAST_HOST_DEVICE bool is_interior(const int (&first)[kCount], int size) {
  int lowest = first[0], highest = first[0];
  for (int l = 0; l < kCount; ++l) {
    lowest = first[l] < lowest ? first[l] : lowest;
    highest = first[l] > highest ? first[l] : highest;
  }
  return lowest >= 1 && highest + 2 < size;
}

// For each of kCount pixels the four neighbours first[l] - 1 ... first[l] + 2 in line(l), clamped to 0 ... size - 1, in
// the bytes of a word. The pixels of a line are `stride` bytes apart.
template <int kCount, typename Line>
LGFAST_HOST_DEVICE void gather_taps(const Line& line, const int (&first)[kCount], int size, int stride,
                                    uint32_t (&taps)[kCount]) {
  if (!is_interior(first, size)) {
    for (int l = 0; l < kCount; ++l) {
      const uint8_t* pixel = line(l);
      if (stride == 1 && first[l] >= 1 && first[l] + 2 < size) {
        taps[l] = four_pixels(pixel, first[l] - 1);
      } else {
        uint32_t word = 0;
        for (int k = 0; k < 4; ++k) word |= uint32_t(pixel[clamp(first[l] - 1 + k, 0, size - 1) * stride]) << (8 * k);
        taps[l] = word;
      }
    }
  } else if (stride == 1) {
    for (int l = 0; l < kCount; ++l) taps[l] = four_pixels(line(l), first[l] - 1);
  } else {
    for (int l = 0; l < kCount; ++l) {
      const uint8_t* pixel = line(l) + (first[l] - 1) * stride;
      taps[l] = pixel[0] | pixel[stride] << 8 | pixel[2 * stride] << 16 | uint32_t(pixel[3 * stride]) << 24;
    }
  }
}

LGFAST_HOST_DEVICE uint8_t sample_bilinear(const uint8_t* plane, int size, int pitch, double X, double Y) {
  X -= 0.5;
  Y -= 0.5;
  const int x = int(floor(X)), y = int(floor(Y));
  const double dx = X - x, dy = Y - y;
  const int x0 = clamp(x, 0, size - 1), x1 = clamp(x + 1, 0, size - 1);
  const uint8_t* top = plane + clamp(y, 0, size - 1) * pitch;
  const uint8_t* bottom = plane + clamp(y + 1, 0, size - 1) * pitch;
  const double upper = top[x0] + (double(top[x1]) - top[x0]) * dx;
  const double lower = bottom[x0] + (double(bottom[x1]) - bottom[x0]) * dx;
  return uint8_t(upper + (lower - upper) * dy);
}

// Nearest neighbour, as Pillow computes it: 16.16 fixed point, or the plain point where the axes do not mix.
struct NearestPoint {
  int x, y;
};
LGFAST_HOST_DEVICE int to_16_16(double value) { return int(floor(value * 65536.0 + 0.5)); }
LGFAST_HOST_DEVICE NearestPoint nearest_point(const Affine& a, int x, int y) {
  if (a.x.y == 0 && a.y.x == 0) {
    const double X = a.x(x + 0.5, y + 0.5), Y = a.y(x + 0.5, y + 0.5);
    return {X < 0 ? -1 : int(X), Y < 0 ? -1 : int(Y)};
  }
  const int start_x = to_16_16(a.x.shift + a.x.x * 0.5 + a.x.y * 0.5);
  const int start_y = to_16_16(a.y.shift + a.y.x * 0.5 + a.y.y * 0.5);
  return {(start_x + y * to_16_16(a.x.y) + x * to_16_16(a.x.x)) >> 16,
          (start_y + y * to_16_16(a.y.y) + x * to_16_16(a.y.x)) >> 16};
}

// Output pixel (x, y) of one plane by nearest or bilinear sampling; `fill` where its source point lies outside.
LGFAST_HOST_DEVICE uint8_t affine_pixel(const Affine& a, Resample resample, const uint8_t* plane, int size, int pitch,
                                        int x, int y, int fill) {
  if (resample == Resample::kNearest) {
    const NearestPoint p = nearest_point(a, x, y);
    const bool inside = p.x >= 0 && p.x < size && p.y >= 0 && p.y < size;
    return inside ? plane[p.y * pitch + p.x] : uint8_t(fill);
  }
  const double X = a.x(x + 0.5, y + 0.5), Y = a.y(x + 0.5, y + 0.5);
  const bool inside = X >= 0 && X < size && Y >= 0 && Y < size;
  return inside ? sample_bilinear(plane, size, pitch, X, Y) : uint8_t(fill);
}

// One source coordinate of kCount neighbouring output pixels, minus 0.5: whole part, fraction, and whether it is
// inside.
template <int kCount>
struct SourceLine {
  int first[kCount];
  double rest[kCount];
  int inside[kCount];

  LGFAST_HOST_DEVICE SourceLine(const AffineLine& line, int x, int y, int size) {
    const double x_center = center_of(x), y_center = center_of(y);
    for (int l = 0; l < kCount; ++l) {
      const double coordinate = line(x_center + l, y_center);
      first[l] = floor_and_rest(coordinate - 0.5, rest[l]);
      inside[l] = is_inside(coordinate, size);
    }
  }
};

// The values of kCount pixels where they are inside, `fill` elsewhere. values(value) is called if one is inside.
template <int kCount, typename Values>
LGFAST_HOST_DEVICE void fill_outside(const int (&inside)[kCount], int fill, const Values& values, uint8_t* out) {
  int any_inside = 0;
  for (int l = 0; l < kCount; ++l) any_inside |= inside[l];
  if (!any_inside) {
    for (int l = 0; l < kCount; ++l) out[l] = uint8_t(fill);
    return;
  }
  double value[kCount];
  values(value);
  int pixel[kCount];
  for (int l = 0; l < kCount; ++l) pixel[l] = truncated(value[l]);
  for (int l = 0; l < kCount; ++l) out[l] = uint8_t(inside[l] ? pixel[l] : fill);
}

// kCount neighbouring output pixels of one plane by bicubic sampling, from (x, y): sixteen taps each.
template <int kCount>
LGFAST_HOST_DEVICE void bicubic_plane(const Affine& a, const uint8_t* plane, int size, int pitch, int x, int y,
                                      int fill, uint8_t* out) {
  const SourceLine<kCount> across(a.x, x, y, size), down(a.y, x, y, size);
  int inside[kCount];
  for (int l = 0; l < kCount; ++l) inside[l] = across.inside[l] & down.inside[l];
  const auto values = [&](double (&value)[kCount]) {
    double v[4][kCount];
    uint32_t taps[kCount];
    if (is_interior(across.first, size) && is_interior(down.first, size)) {
      int offset[kCount];
      for (int l = 0; l < kCount; ++l) offset[l] = (down.first[l] - 1) * pitch;
      for (int k = 0; k < 4; ++k) {
        for (int l = 0; l < kCount; ++l) taps[l] = four_pixels(plane + k * pitch + offset[l], across.first[l] - 1);
        for (int l = 0; l < kCount; ++l) v[k][l] = cubic_of_word(taps[l], across.rest[l]);
      }
    } else {
      for (int k = 0; k < 4; ++k) {
        gather_taps([&](int l) { return plane + clamp(down.first[l] - 1 + k, 0, size - 1) * pitch; }, across.first,
                    size, 1, taps);
        for (int l = 0; l < kCount; ++l) v[k][l] = cubic_of_word(taps[l], across.rest[l]);
      }
    }
    for (int l = 0; l < kCount; ++l) value[l] = cubic(v[0][l], v[1][l], v[2][l], v[3][l], down.rest[l]);
  };
  fill_outside(inside, fill, values, out);
}

// The same where the rows stay (keeps_y) or the columns: the other coordinate is a whole number, and there the second
// cubic changes nothing. Four taps instead of sixteen, same result.
template <int kCount>
LGFAST_HOST_DEVICE void bicubic_line(const Affine& a, bool keeps_y, const uint8_t* plane, int size, int pitch, int x,
                                     int y, int fill, uint8_t* out) {
  const SourceLine<kCount> line(keeps_y ? a.x : a.y, x, y, size);
  const auto values = [&](double (&value)[kCount]) {
    uint32_t taps[kCount];
    if (keeps_y) {
      gather_taps([&](int) { return plane + y * pitch; }, line.first, size, 1, taps);
    } else {
      gather_taps([&](int l) { return plane + x + l; }, line.first, size, pitch, taps);
    }
    for (int l = 0; l < kCount; ++l) value[l] = cubic_of_word(taps[l], line.rest[l]);
  };
  fill_outside(line.inside, fill, values, out);
}

// kCount neighbouring output pixels of one plane, from (x, y); `fill` where the source point lies outside.
template <int kCount>
LGFAST_HOST_DEVICE void affine_pixels(const Affine& a, Resample resample, const uint8_t* plane, int size, int pitch,
                                      int x, int y, int fill, uint8_t* out) {
  const bool keeps_x = a.x.x == 1 && a.x.y == 0 && a.x.shift == 0;
  const bool keeps_y = a.y.x == 0 && a.y.y == 1 && a.y.shift == 0;
  if (resample != Resample::kBicubic) {
    for (int l = 0; l < kCount; ++l) out[l] = affine_pixel(a, resample, plane, size, pitch, x + l, y, fill);
  } else if (keeps_x || keeps_y) {
    bicubic_line<kCount>(a, keeps_y, plane, size, pitch, x, y, fill, out);
  } else {
    bicubic_plane<kCount>(a, plane, size, pitch, x, y, fill, out);
  }
}

}  // namespace lgfast
