// Rotate, shear, translate: output pixel (x, y) shows source point M (x + 0.5, y + 0.5, 1), as Pillow computes it; for
// host and device. Compile without contraction of a * b + c.
#pragma once

#include "augment/augment.h"
#include "augment/exact_double.h"

namespace lgfast {

struct AffineLine {
  double x, y, shift;  // a source coordinate: x, y of the output pixel's centre, weighed, plus shift
  LGFAST_HOST_DEVICE double operator()(double x_center, double y_center) const {
    return x * x_center + y * y_center + shift;
  }
  LGFAST_HOST_DEVICE double range(int size) const { return (fabs(x) + fabs(y)) * size + fabs(shift) + 3; }
};
struct Affine {
  AffineLine x, y;
  LGFAST_HOST_DEVICE bool keeps_x() const { return x.x == 1 && x.y == 0 && x.shift == 0; }
  LGFAST_HOST_DEVICE bool keeps_y() const { return y.x == 0 && y.y == 1 && y.shift == 0; }
  // Source coordinates of a size x size image, minus up to 1.5, are smaller in amount.
  LGFAST_HOST_DEVICE double range(int size) const {
    const double of_x = x.range(size), of_y = y.range(size);
    return of_x > of_y ? of_x : of_y;
  }
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
    case AugmentOp::kTranslateXPixels: return {{1, 0, argument}, {0, 1, 0}};
    case AugmentOp::kTranslateYPixels: return {{1, 0, 0}, {0, 1, argument}};
    default: return rotation(argument, size);
  }
}

// Cubic with a = -1 through four neighbours, d in [0, 1) from the second.
LGFAST_HOST_DEVICE double cubic(double v0, double v1, double v2, double v3, double d) {
  const double p2 = -v0 + v2;
  const double p3 = 2 * (v0 - v1) + v2 - v3;
  const double p4 = -v0 + v1 - v2 + v3;
  return v1 + d * (p2 + d * (p3 + d * p4));
}

// The same for four pixels in the bytes of a word, the first one lowest. They are whole numbers, so the order in which
// p3 and -p4 are added up does not matter.
LGFAST_HOST_DEVICE double cubic_of_word(uint32_t taps, double d) {
  const int v0 = byte_of(taps, 0), v1 = byte_of(taps, 1), v2 = byte_of(taps, 2), v3 = byte_of(taps, 3);
  const int fall = v0 - v1, bend = fall + v2 - v3;
  return v1 + d * ((v2 - v0) + d * ((fall + bend) - d * bend));
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
// the bytes of a word. The pixels of a line are neighbours in a row, or `pitch` bytes apart in a column.
template <bool kIsRow, int kCount, typename Line>
LGFAST_HOST_DEVICE void gather_taps(const Line& line, const int (&first)[kCount], int size, int pitch,
                                    uint32_t (&taps)[kCount]) {
  const int stride = kIsRow ? 1 : pitch;
  if (!is_interior(first, size)) {
    for (int l = 0; l < kCount; ++l) {
      const uint8_t* pixel = line(l);
      if (kIsRow && kCount > 1 && first[l] >= 1 && first[l] + 2 < size) {
        taps[l] = four_pixels(pixel, first[l] - 1);
      } else {
        uint32_t word = 0;
        for (int k = 0; k < 4; ++k) word |= uint32_t(pixel[clamp(first[l] - 1 + k, 0, size - 1) * stride]) << (8 * k);
        taps[l] = word;
      }
    }
  } else if (kIsRow) {
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
      const double coordinate = line(l == 0 ? x_center : x_center + l, y_center);
      first[l] = floor_and_rest(coordinate - 0.5, rest[l]);
      inside[l] = is_inside(coordinate, size);
    }
  }
};

// Makes kCount neighbouring output pixels from (x, y): computes their source points once, then calls make() for the
// pixels of each plane. A pixel whose source point lies outside gets `fill`.

// Nearest and bilinear sampling.
template <int kCount>
struct AffinePixels {
  const Affine& a;
  Resample resample;
  int x, y, size, pitch;

  LGFAST_HOST_DEVICE AffinePixels(const Affine& a, Resample resample, int x, int y, int size, int pitch)
      : a(a), resample(resample), x(x), y(y), size(size), pitch(pitch) {}
  LGFAST_HOST_DEVICE void make(const uint8_t* plane, int fill, uint8_t* out) const {
    for (int l = 0; l < kCount; ++l) out[l] = affine_pixel(a, resample, plane, size, pitch, x + l, y, fill);
  }
};

template <int kCount>
LGFAST_HOST_DEVICE bool fill_if_outside(const int (&inside)[kCount], int fill, uint8_t* out) {
  int any_inside = 0;
  for (int l = 0; l < kCount; ++l) any_inside |= inside[l];
  if (any_inside) return false;
  for (int l = 0; l < kCount; ++l) out[l] = uint8_t(fill);
  return true;
}

template <int kCount>
LGFAST_HOST_DEVICE void to_pixels(const double (&value)[kCount], const int (&inside)[kCount], int fill, uint8_t* out) {
  int pixel[kCount];
  for (int l = 0; l < kCount; ++l) pixel[l] = truncated(value[l]);
  for (int l = 0; l < kCount; ++l) out[l] = uint8_t(inside[l] ? pixel[l] : fill);
}

// Bicubic sampling: sixteen taps each.
template <int kCount>
struct BicubicPixels {
  SourceLine<kCount> across, down;
  int inside[kCount], size, pitch;

  LGFAST_HOST_DEVICE BicubicPixels(const Affine& a, Resample, int x, int y, int size, int pitch)
      : across(a.x, x, y, size), down(a.y, x, y, size), size(size), pitch(pitch) {
    for (int l = 0; l < kCount; ++l) inside[l] = across.inside[l] & down.inside[l];
  }
  LGFAST_HOST_DEVICE void make(const uint8_t* plane, int fill, uint8_t* out) const {
    if (fill_if_outside(inside, fill, out)) return;
    uint32_t taps[4][kCount];
    if (is_interior(across.first, size) && is_interior(down.first, size)) {
      int offset[kCount];
      for (int l = 0; l < kCount; ++l) offset[l] = (down.first[l] - 1) * pitch + across.first[l] - 1;
      for (int k = 0; k < 4; ++k) {
        for (int l = 0; l < kCount; ++l) taps[k][l] = four_pixels(plane + k * pitch, offset[l]);
      }
    } else {
      for (int k = 0; k < 4; ++k) {
        gather_taps<true>([&](int l) { return plane + clamp(down.first[l] - 1 + k, 0, size - 1) * pitch; },
                          across.first, size, pitch, taps[k]);
      }
    }
    double v[4][kCount], value[kCount];
    for (int k = 0; k < 4; ++k) {
      for (int l = 0; l < kCount; ++l) v[k][l] = cubic_of_word(taps[k][l], across.rest[l]);
    }
    for (int l = 0; l < kCount; ++l) value[l] = cubic(v[0][l], v[1][l], v[2][l], v[3][l], down.rest[l]);
    to_pixels(value, inside, fill, out);
  }
};

// The same where rows stay rows (kIsRow), or columns stay columns. The other coordinate is then a whole number, at
// which the second cubic changes nothing: four taps give the result of sixteen.
template <bool kIsRow, int kCount>
struct BicubicLinePixels {
  SourceLine<kCount> line;
  int x, y, size, pitch;

  LGFAST_HOST_DEVICE BicubicLinePixels(const Affine& a, Resample, int x, int y, int size, int pitch)
      : line(kIsRow ? a.x : a.y, x, y, size), x(x), y(y), size(size), pitch(pitch) {}
  LGFAST_HOST_DEVICE void make(const uint8_t* plane, int fill, uint8_t* out) const {
    if (fill_if_outside(line.inside, fill, out)) return;
    uint32_t taps[1][kCount];
    double value[kCount];
    gather_taps<kIsRow>([&](int l) { return kIsRow ? plane + y * pitch : plane + x + l; }, line.first, size, pitch,
                        taps[0]);
    for (int l = 0; l < kCount; ++l) value[l] = cubic_of_word(taps[0][l], line.rest[l]);
    to_pixels(value, line.inside, fill, out);
  }
};

}  // namespace lgfast
