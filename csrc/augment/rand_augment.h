// The second part of augment: one operation on the planes. An operation that looks at one value only leaves a pending
// table. One that looks at neighbours writes where the view will be, and copies back from there (working_image.h).
#pragma once

#include "augment/affine.h"
#include "augment/box_blur.h"
#include "augment/hue.h"
#include "augment/line_pass.h"
#include "augment/pixel_ops.h"
#include "augment/rows_before.h"
#include "augment/square_pass.h"
#include "augment/view_table.h"

namespace lgfast {

// The mean of the image in grey, rounded: what contrast blends with.
template <class Team>
LGFAST_TEAM int mean_luma(WorkingImage<Team>& image) {
  constexpr int kStrip = Team::kStrip;
  image.apply_pending();
  image.team.each(1, [&](int) { *image.total = 0; });
  uint32_t sum = 0;
  image.team.grid(image.size, image.num_strips(), [&](int y, int s) {
    const auto& r = image.read(image.plane(0), y, s);
    const auto& g = image.read(image.plane(1), y, s);
    const auto& b = image.read(image.plane(2), y, s);
    for (int l = 0; l < kStrip; ++l) {
      sum += s * kStrip + l < image.size ? luma(r.value[l], g.value[l], b.value[l]) : 0;
    }
  });
  image.team.add_to_total(image.total, sum);
  return int(double(*image.total) / (double(image.size) * image.size) + 0.5);
}

// Counts, for every value of every channel, the darker pixels, and fills image.ranges. The counts lie in the memory of
// the weights.
template <class Team>
LGFAST_TEAM const uint32_t* scan_histogram(WorkingImage<Team>& image) {
  constexpr int kGroup = 16;  // values added up at once: every thread adds at most two times 15 numbers
  uint32_t* num_darker = reinterpret_cast<uint32_t*>(image.weights);
  uint32_t* group_sum = num_darker + kTableSize;
  image.team.each(kTableSize / kGroup, [&](int i) {
    uint32_t sum = 0;
    for (int k = 0; k < kGroup; ++k) sum += image.histogram[i * kGroup + k];
    group_sum[i] = sum;
  });
  image.team.each(kTableSize, [&](int i) {
    const int group = i / kGroup;
    uint32_t sum = 0;
    for (int k = i / 256 * (256 / kGroup); k < group; ++k) sum += group_sum[k];
    for (int k = group * kGroup; k < i; ++k) sum += image.histogram[k];
    num_darker[i] = sum;
    if (image.histogram[i] == 0) return;
    if (sum == 0) image.ranges[i / 256].low = i & 255;
    if (sum + image.histogram[i] == uint32_t(image.size * image.size)) image.ranges[i / 256].high = i & 255;
  });
  return num_darker;
}

// Autocontrast or equalize: tables made from the histograms of the channels.
template <class Team>
LGFAST_TEAM void stretch(WorkingImage<Team>& image, AugmentOp op) {
  constexpr int kStrip = Team::kStrip;
  const uint32_t num_pixels = image.size * image.size;
  image.apply_pending();
  image.team.each(kTableSize, [&](int i) { image.histogram[i] = 0; });
  image.each_pixel_strip(image.held(), [&](int c, int y, int s) {
    const auto& values = image.read(image.plane(c), y, s);
    for (int l = 0; l < kStrip && s * kStrip + l < image.size; ++l) {
      image.team.add(image.histogram + c * 256 + values.value[l], 1);
    }
  });
  const uint32_t* num_darker = scan_histogram(image);
  image.team.each(kTableSize, [&](int i) {
    const int value = i & 255;
    const ValueRange range = image.ranges[i / 256];
    const uint32_t rest = num_pixels - image.histogram[i - value + range.high];
    image.lut[i] = op == AugmentOp::kEqualize ? equalized_value(value, num_darker[i], rest)
                                              : autocontrast_value(value, range.low, range.high);
  });
  image.has_pending = true;
}

// Color: between the image in grey (factor 0) and itself (1), or beyond.
template <class Team>
LGFAST_TEAM void blend_with_luma(WorkingImage<Team>& image, float factor) {
  constexpr int kStrip = Team::kStrip;
  image.apply_pending();
  const Rows held = image.held();
  image.team.grid(held.count(), image.num_strips(), [&](int row, int s) {
    const int y = held.begin + row;
    auto& r = image.strip(image.plane(0), y, s);
    auto& g = image.strip(image.plane(1), y, s);
    auto& b = image.strip(image.plane(2), y, s);
    int gray[kStrip];
    for (int l = 0; l < kStrip; ++l) gray[l] = luma(r.value[l], g.value[l], b.value[l]);
    image.team.write(r.value, [&](int l) { return blend(gray[l], r.value[l], factor); });
    image.team.write(g.value, [&](int l) { return blend(gray[l], g.value[l], factor); });
    image.team.write(b.value, [&](int l) { return blend(gray[l], b.value[l], factor); });
  });
}

// Sharpness: between the smoothed image (factor 0) and itself (1), or beyond; the border stays.
template <class Team>
LGFAST_TEAM void sharpen(WorkingImage<Team>& image, float factor, Rows made) {
  constexpr int kStrip = Team::kStrip;
  using Strip = typename WorkingImage<Team>::Strip;
  image.apply_pending();
  image.each_pixel_strip(made, [&](int c, int y, int s) {
    const bool is_edge_row = y == 0 || y == image.size - 1;
    Strip out;
    const uint8_t* center = image.plane(c) + y * image.pitch;
    const uint8_t* above = is_edge_row ? center : center - image.pitch;
    const uint8_t* below = is_edge_row ? center : center + image.pitch;
    const int x = s * kStrip;
    int smoothed[kStrip];
    for (int l = 0; l < kStrip; ++l) {  // the first row's left neighbour is memory before it, read and not used
      const int i = x + l;
      smoothed[l] = smooth(above[i - 1] + above[i] + above[i + 1] + center[i - 1] + center[i] + center[i + 1] +
                               below[i - 1] + below[i] + below[i + 1],
                           center[i]);
    }
    for (int l = 0; l < kStrip; ++l) {
      const bool is_edge = is_edge_row | (x + l == 0) | (x + l >= image.size - 1);
      out.value[l] = blend(is_edge ? center[x + l] : smoothed[l], center[x + l], factor);
    }
    if (image.size % kStrip == 0) {
      *reinterpret_cast<Strip*>(image.moved_pixel(c, y, x)) = out;
    } else {
      copy_first(out.value, image.size - x, image.moved_pixel(c, y, x));
    }
  });
  image.take_moved(made);
}

// Rotates, shears or translates. A thread makes kStrip pixels of a row, which share what follows from y, kAffinePixels
// at a time: a strip, or on the GPU one pixel, so that neighbouring threads read neighbouring bytes.
template <typename Pixels, class Team>
LGFAST_TEAM void move_pixels(WorkingImage<Team>& image, const Affine& a, Rows made) {
  constexpr int kPixels = Team::kAffinePixels;
  const int size = image.size;
  image.apply_pending();
  image.team.grid(made.count(), image.num_strips(), [&](int row, int s) {
    const int y = made.begin + row;
    LGFAST_NO_UNROLL
    for (int l = 0; l < Team::kStrip / kPixels; ++l) {
      const int x = kPixels * (s + l * image.num_strips());
      if (x >= size) break;
      const Pixels pixels(a, image.params.resample, x, y, size, image.pitch);
      uint8_t* out = image.moved_pixel(0, y, x);
      for (int c = 0; c < 3; ++c, out += size * size) {
        uint8_t bytes[kPixels];
        pixels.make(image.plane(c), image.params.fill[c], bytes);
        copy_first(bytes, size - x, out);
      }
    }
  });
  image.take_moved(made);
}

enum class Moved { kNot, kInPlanes, kInView };

// Moves the pixels by estimates; into the view, where only operations that look at one value follow. On a CPU,
// arithmetic in double is as fast.
#if !defined(LGFAST_DEVICE)
template <typename T, class Team>
LGFAST_TEAM Moved move_by_estimates(WorkingImage<Team>&, const Affine&, const ValueOps&, T*, Rows) {
  return Moved::kNot;
}
#else
template <typename T, class Team>
LGFAST_TEAM Moved move_by_estimates(WorkingImage<Team>& image, const Affine& a, const ValueOps& later, T* view,
                                    Rows made) {
  constexpr int kSmallest = 8;  // words of four pixels and their neighbours
  if (image.size < kSmallest || !(a.range(image.size) < 0x1p20)) return Moved::kNot;
  const bool is_last = is_dense(image) && image.params.row_stride == image.size &&
                       image.params.channel_stride == image.size * image.size && later.are_all;
  image.apply_pending();
  if (is_last) {
    make_view_table<T>(image, later);
  } else {
    make_plain_table<T>(image);
  }
  image.team.meet();
  T* moved = is_last ? view : reinterpret_cast<T*>(image.moved);
  const int (&fill)[3] = image.params.fill;
  const bool is_row = a.keeps_y() && a.x.x == 1, is_column = a.keeps_x() && a.y.y == 1;
  if (is_row) {
    move_lines<true, T, Team>(image.memory, moved, a, fill[0], fill[1], fill[2], image.size, made);
  } else if (is_column) {
    move_lines<false, T, Team>(image.memory, moved, a, fill[0], fill[1], fill[2], image.size, made);
  } else {
    move_square<T, Team>(image.memory, moved, a, fill[0], fill[1], fill[2], image.size, made);
  }
  if (is_last) return Moved::kInView;
  take_moved_values<T>(image, made);
  return Moved::kInPlanes;
}
#endif

// Returns whether the view is made.
template <typename T, class Team>
LGFAST_TEAM bool transform(WorkingImage<Team>& image, const Affine& a, const ValueOps& later, T* view, Rows made) {
  constexpr int kPixels = Team::kAffinePixels;
  if (image.params.resample != Resample::kBicubic) {
    move_pixels<AffinePixels<kPixels>>(image, a, made);
    return false;
  }
  const Moved moved = move_by_estimates<T>(image, a, later, view, made);
  if (moved != Moved::kNot) return moved == Moved::kInView;
  if (a.keeps_y()) {
    move_pixels<BicubicLinePixels<true, kPixels>>(image, a, made);
  } else if (a.keeps_x()) {
    move_pixels<BicubicLinePixels<false, kPixels>>(image, a, made);
  } else {
    move_pixels<BicubicPixels<kPixels>>(image, a, made);
  }
  return false;
}

// Upside down; the rows that the planes hold are as many above the middle as below.
template <class Team>
LGFAST_TEAM void flip_vertically(WorkingImage<Team>& image) {
  image.each_strip(Rows{image.held().begin, image.size / 2}, [&](int c, int y, int s) {
    auto& upper = image.strip(image.plane(c), y, s);
    auto& lower = image.strip(image.plane(c), image.size - 1 - y, s);
    const auto kept = upper;
    upper = lower;
    lower = kept;
  });
}

LGFAST_HOST_DEVICE bool moves_pixels(AugmentOp op) {
  return op == AugmentOp::kRotate || (op >= AugmentOp::kShearX && op <= AugmentOp::kTranslateYPixels);
}

// One slot of a plan that moves no pixels; argument: see op_argument() and trivial_argument() in augment_policies.h.
template <class Team>
LGFAST_TEAM void apply_op(WorkingImage<Team>& image, AugmentOp op, double argument, Rows made) {
  switch (op) {
    case AugmentOp::kSkip: return;
    case AugmentOp::kAutoContrast:
    case AugmentOp::kEqualize: return stretch(image, op);
    case AugmentOp::kColor: return blend_with_luma(image, float(argument));
    case AugmentOp::kSharpness: return sharpen(image, float(argument), made);
    case AugmentOp::kGaussianBlur: return gaussian_blur(image, float(argument));
    case AugmentOp::kHue: return turn_hue(image, int(argument * 255));
    default: break;
  }
  const int mean = op == AugmentOp::kContrast ? mean_luma(image) : 0;
  image.team.each(kTableSize, [&](int i) { image.lut[i] = point_value(op, image.pending(i), argument, mean); });
  image.has_pending = true;
}

// One thread computes the sine and cosine, in double precision.
template <class Team>
LGFAST_TEAM Affine shared_affine(const WorkingImage<Team>& image, AugmentOp op, double argument) {
  Affine* shared = reinterpret_cast<Affine*>(image.weights);
  image.team.each(1, [&](int) { *shared = affine_of(op, argument, image.size); });
  return *shared;
}

// Returns the rows of the image before the operation at a column of the plan, of which the view's `rows` are made.
template <class Team>
LGFAST_TEAM Rows rows_needed(const WorkingImage<Team>& image, int first, Rows rows) {
  if (Team::kIsWhole) return {0, image.size};
  LGFAST_NO_UNROLL
  for (int column = image.params.num_columns - 2; column >= first; column -= 2) {
    rows = rows_before(AugmentOp(int(image.row[column])), image.row[column + 1], rows, image.size);
  }
  return rows;
}

// All slots of a plan, to make `rows` of the view. Returns whether they are made.
template <typename T, class Team>
LGFAST_TEAM bool apply_ops(WorkingImage<Team>& image, T* view, Rows rows) {
  for (int column = kFirstOp; column + 1 < image.params.num_columns; column += 2) {
    const AugmentOp op = AugmentOp(int(image.row[column]));
    const double argument = image.row[column + 1];
    const Rows made = rows_needed(image, column + 2, rows);
    if (!moves_pixels(op)) {
      apply_op(image, op, argument, made);
    } else if (transform<T>(image, shared_affine(image, op, argument), value_ops(image, column + 2), view, made)) {
      return true;
    }
    image.held_rows = made;
  }
  return false;
}

}  // namespace lgfast
