// Rotated pixels on a GPU, bicubic: sixteen taps each. Where the estimate is too near to a whole number, affine.h's
// arithmetic in double decides.
//
// A row's weights are whole numbers of 65535ths, which a product of 16-bit numbers and bytes (dp2a) adds up; the rows'
// weights are float32. The estimate errs by less than the margin, in steps of a pixel's value:
// - A row's weights are rounded by half a step, and by 2^-23 before. They weigh columns that the rows' weights made of
//   bytes, within -64 ... 319: less than 4 (0.5 / 65535 + 2^-23) 319 = 0.0099.
// - The rows' weights err by 2^-23 each, their products and sums by half a bit of 2^25: 0.0003 together.
// - The parts of a source coordinate that follow from x and from y are rounded to fixed point, half a bit each. A bit
//   of a coordinate moves a value by at most 575 bits: 191 around the middle of 383 times the slopes of the weights,
//   3 in sum of their amounts. Both coordinates: 1150, where the margin has 2048.
// Of sixteen taps that are all alike the result is known; runs of pixels most of which are in doubt are looked through
// for those. Other pixels in doubt are estimated again, by weights in float32 alone: the rows of weights err by 7 units
// of 2^-24 together, times 255, and four products and sums by 319 each, which the other weights take up to 1.5 times;
// those err by 7 units times 319 and four times 450: less than 2^-10. What is still in doubt is made in double, which
// errs by less than 1e-11.
#pragma once

#include "augment/doubtful_pixels.h"

#if defined(LGFAST_DEVICE)
namespace lgfast {

// What a source point, minus 1.5, owes to the output pixel's x or to its y.
struct SourcePart {
  int x, y;
};

struct FixedPoint {
  int bits;        // of the fraction, at most 23
  uint32_t mask;   // of the fraction
  float fraction;  // where the mask's bits end a float in [1, 2), that is 1 + the part of a pixel / this
};

// Leaves the source points of all output pixels a sign. They lie within 2^20.
LGFAST_HOST_DEVICE FixedPoint fixed_point_of(double range) {
  const int exponent = int(bit_cast<uint64_t>(range) >> 52) - 1023;
  const int bits = exponent < 7 ? 23 : 30 - exponent;
  return {bits, (1u << bits) - 1, bit_cast<float>(uint32_t(127 + 23 - bits) << 23)};
}

struct SquareTaps {
  int row[4];         // byte offsets of the words from which each row's taps come
  uint32_t selector;  // of their bytes: taps 1, 2, 0, 3
};

template <typename T, class Team>
struct SquarePass {
  static constexpr int kRun = 8;         // pixels of a thread until it lists what is in doubt
  static constexpr int kManyDoubts = 6;  // of a run, where one in 40 is usual
  static constexpr float kWhole = 65535.0f;

  const BicubicPass<T, Team>& p;
  SourcePart *columns, *rows;
  DoubtList<Team::kIsShared> list;
  FixedPoint fixed;
  float limit;       // of the distance to the middle between two whole numbers, negative
  float fine_limit;  // the same of the finer estimate, positive
  uint32_t end, to_point;

  LGFAST_TEAM explicit SquarePass(const BicubicPass<T, Team>& pass) : p(pass) {
    columns = reinterpret_cast<SourcePart*>(p.plane(3));
    rows = columns + p.size;
    list = p.list_after(2 * p.size * int(sizeof(SourcePart)));
    fixed = fixed_point_of(p.a.range(p.size));
    limit = 0x3p-8f + 0x1p11f / float(1 << fixed.bits) - 0.5f;
    fine_limit = 0.5f - 0x1p-10f - 0x1p11f / float(1 << fixed.bits);
    end = uint32_t(p.size) << fixed.bits;
    to_point = 3u << (fixed.bits - 1);
  }

  LGFAST_TEAM void prepare() const {
    const double unit = double(1 << fixed.bits);
    Team().each(2 * p.size, [&](int i) {
      if (i == 0) list.clear();
      const bool is_row = i >= p.size;
      const double center = center_of(is_row ? i - p.size : i);
      const double x = is_row ? p.a.x.y * center + p.a.x.shift - 1.5 : p.a.x.x * center;
      const double y = is_row ? p.a.y.y * center + p.a.y.shift - 1.5 : p.a.y.x * center;
      columns[i] = {floor_of(x * unit + 0.5), floor_of(y * unit + 0.5)};
    });
  }

  LGFAST_TEAM CubicWeights weights(int coordinate) const {
    const float f = bit_cast<float>((uint32_t(coordinate) & fixed.mask) | 0x3f800000u);
    return cubic_weights(fmaf(f, fixed.fraction, -fixed.fraction), fmaf(-f, fixed.fraction, 1 + fixed.fraction));
  }
  // The lower 16 bits are those of the whole number.
  LGFAST_TEAM static uint32_t whole_bits(float value) { return bit_cast<uint32_t>(fmaf(value, kWhole, kOnes)); }

  LGFAST_TEAM SquareTaps inner_taps(int left, int top) const {
    const int first = top * p.pitch + (left & ~3);
    return {{first, first + p.pitch, first + 2 * p.pitch, first + 3 * p.pitch}, 0x3021 + uint32_t(left & 3) * 0x1111};
  }
  LGFAST_TEAM SquareTaps clamped_taps(int left, int top) const {
    SquareTaps taps;
    const int last = p.size - 1, word = clamp(left, 0, p.pitch - 8) & ~3;
    for (int k = 0; k < 4; ++k) taps.row[k] = clamp(top + k, 0, last) * p.pitch + word;
    const auto place = [&](int k) { return uint32_t(clamp(left + k, 0, last) - word); };
    taps.selector = place(1) | place(2) << 4 | place(0) << 8 | place(3) << 12;
    return taps;
  }

  // Whether it is not certain on which side of an edge a coordinate lies.
  LGFAST_TEAM bool is_at_edge(uint32_t point) const { return point + 2 < 4 || point - end + 2 < 4; }

  // Makes the three channels of pixel i, and shifts into `certain` whether each is.
  LGFAST_TEAM void make(int i, uint32_t& certain) const {
    const int size = p.size, num_pixels = size * size, y = i / size;
    const SourcePart column = columns[i - y * size], row = rows[y];
    const int X = column.x + row.x, Y = column.y + row.y, left = X >> fixed.bits, top = Y >> fixed.bits;
    T* out = p.moved + i;
    SquareTaps taps;
    if (uint32_t(left) <= uint32_t(size - 4) && uint32_t(top) <= uint32_t(size - 4)) {
      taps = inner_taps(left, top);
    } else {
      const uint32_t x_point = uint32_t(X) + to_point, y_point = uint32_t(Y) + to_point;
      const bool is_doubtful = is_at_edge(x_point) || is_at_edge(y_point);
      if (is_doubtful || x_point >= end || y_point >= end) {
        certain = certain << 3 | (is_doubtful ? 0 : 7);
        for (int c = 0; c < 3; ++c) out[c * num_pixels] = p.shown(c, p.fill_of(c));
        return;
      }
      taps = clamped_taps(left, top);
    }
    const CubicWeights across = weights(X), down = weights(Y);
    const uint32_t inner = select_bytes(whole_bits(across.value[1]), whole_bits(across.value[2]), 0x5410);
    const uint32_t outer = select_bytes(whole_bits(across.value[0]), whole_bits(across.value[3]), 0x5410);
    for (int c = 0; c < 3; ++c) {
      float sum = -0.5f * kWhole;  // rounded to the nearest, the sum then is the value rounded down
      for (int k = 0; k < 4; ++k) {
        const uint32_t* words = reinterpret_cast<const uint32_t*>(p.plane(c) + taps.row[k]);
        const uint32_t four = select_bytes(words[0], words[1], taps.selector);
        sum = fmaf(float(dot_high_bytes(four, outer, dot_low_bytes(four, inner, 0))), down.value[k], sum);
      }
      const float shifted = fmaf(sum, 1 / kWhole, kOnes);
      const float rest = fmaf(sum, 1 / kWhole, kOnes - shifted);
      certain = shift_in(certain, bit_cast<uint32_t>(fabsf(rest) + limit));
      const int value = clamp(int(bit_cast<uint32_t>(shifted) - bit_cast<uint32_t>(kOnes)), 0, 255);
      out[c * num_pixels] = p.shown(c, value);
    }
  }

  // Makes channel c of a pixel in doubt by an estimate that errs less; returns false if it is still in doubt.
  LGFAST_TEAM bool decide_one(int c, int i) const {
    const int size = p.size, y = i / size;
    const SourcePart column = columns[i - y * size], row = rows[y];
    const int X = column.x + row.x, Y = column.y + row.y;
    if (is_at_edge(uint32_t(X) + to_point) || is_at_edge(uint32_t(Y) + to_point)) return false;
    const SquareTaps taps = clamped_taps(X >> fixed.bits, Y >> fixed.bits);
    const CubicWeights across = weights(X), down = weights(Y);
    const float weight[4] = {across.value[1], across.value[2], across.value[0], across.value[3]};
    uint32_t first = 0, differing = 0;
    float sum = -0.5f;
    for (int k = 0; k < 4; ++k) {
      const uint32_t* words = reinterpret_cast<const uint32_t*>(p.plane(c) + taps.row[k]);
      const uint32_t four = select_bytes(words[0], words[1], taps.selector);
      if (k == 0) first = select_bytes(four, 0, 0);
      differing |= four ^ first;
      float value = 0;
      for (int j = 0; j < 4; ++j) value = fmaf(float(select_byte(four, j)), weight[j], value);
      sum = fmaf(value, down.value[k], sum);
    }
    const float shifted = sum + kOnes, rest = sum - (shifted - kOnes);
    const bool is_flat = differing == 0;  // of sixteen taps that are all alike the result is known
    if (!is_flat && fabsf(rest) > fine_limit) return false;
    const int value = clamp(int(bit_cast<uint32_t>(shifted) - bit_cast<uint32_t>(kOnes)), 0, 255);
    p.moved[c * size * size + i] = p.shown(c, is_flat ? int(first & 255) : value);
    return true;
  }

  // Makes the pixels of a run whose taps are all alike. Returns the doubts that are left.
  LGFAST_TEAM uint32_t settle_flat(int first, uint32_t doubts) const {
    const int size = p.size;
    uint32_t left = doubts;
    LGFAST_NO_UNROLL
    for (int k = 0; k < kRun; ++k) {
      const int i = first + k * block_size(), y = i / size, shift = 3 * (kRun - 1 - k);
      if ((doubts >> shift & 7) == 0) continue;
      const SourcePart column = columns[i - y * size], row = rows[y];
      const int X = column.x + row.x, Y = column.y + row.y;
      if (is_at_edge(uint32_t(X) + to_point) || is_at_edge(uint32_t(Y) + to_point)) continue;
      const SquareTaps taps = clamped_taps(X >> fixed.bits, Y >> fixed.bits);
      for (int c = 0; c < 3; ++c) {
        uint32_t alike = 0, differing = 0;
        for (int j = 0; j < 4; ++j) {
          const uint32_t* words = reinterpret_cast<const uint32_t*>(p.plane(c) + taps.row[j]);
          const uint32_t four = select_bytes(words[0], words[1], taps.selector);
          if (j == 0) alike = select_bytes(four, 0, 0);
          differing |= four ^ alike;
        }
        if (differing != 0) continue;
        p.moved[c * size * size + i] = p.shown(c, int(alike & 255));
        left &= ~(4u >> c << shift);
      }
    }
    return left;
  }

  LGFAST_TEAM void run() const {
    prepare();
    const auto exact = [&](uint32_t item) {
      const int place = 3 * kRun - 1 - int(item >> 24), k = place / 3;
      const int i = int(item & 0xffffff) + k * block_size(), y = i / p.size;
      p.template make_exact<BicubicPixels<1>>(place - 3 * k, y, i - y * p.size);
    };
    const int num_pixels = p.made.end * p.size;
    LGFAST_NO_UNROLL
    for (int first = p.made.begin * p.size + thread_index(); first < num_pixels; first += kRun * block_size()) {
      uint32_t certain = 0;
      LGFAST_NO_UNROLL
      for (int k = 0; k < kRun; ++k) {
        const int i = first + k * block_size();
        if (i < num_pixels) {
          make(i, certain);
        } else {
          certain = certain << 3 | 7;
        }
      }
      uint32_t doubts = ~certain & ((1u << (3 * kRun)) - 1);
      if (num_bits(doubts) >= kManyDoubts) doubts = settle_flat(first, doubts);
      list.add(doubts, uint32_t(first), exact);
    }
    const auto decide = [&](uint32_t item) {
      const int place = 3 * kRun - 1 - int(item >> 24), k = place / 3;
      return decide_one(place - 3 * k, int(item & 0xffffff) + k * block_size());
    };
    list.rest(decide, exact).settle(exact);
  }
};

// A function of its own, which keeps its loop's numbers in registers.
template <typename T, class Team>
LGFAST_CALLED void move_square(uint8_t* memory, T* moved, Affine a, int fill0, int fill1, int fill2, int size,
                               Rows made) {
  const BicubicPass<T, Team> pass(memory, moved, a, fill0, fill1, fill2, size, made);
  SquarePass<T, Team>(pass).run();
}

}  // namespace lgfast
#endif
