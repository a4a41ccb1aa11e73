// Sheared and translated pixels on a GPU, bicubic: rows stay rows (kIsRow), or columns stay columns, so four taps are
// enough, and a line's pixels share their weights. Where the estimate is too near to a whole number, affine.h's
// arithmetic in double decides.
//
// The weights are whole numbers of 2^-24, which add up to one. An estimate then errs by at most half of what bytes can
// differ, 127.5, times the errors of the weights, in 2^-24 together: 7 as they are computed in float32, 2 as they are
// rounded, 9 more in the one that makes up for both, 20 where the largest would be one. That is 19 of 65536ths, and one
// is lost as the sum is rounded down: less than kMargin. The double arithmetic itself errs by less than 1e-11.
#pragma once

#include "augment/doubtful_pixels.h"

#if defined(LGFAST_DEVICE)
namespace lgfast {

struct alignas(16) LineWeights {
  // Bit 0: the source point lies in the third pixel, not the second, of the taps. Bit 1: it may lie in another than
  // that. From bit 2: from an output pixel to its first tap.
  int place;
  uint32_t inner;  // upper 16 bits of the weights of taps 1 and 2, unsigned
  uint32_t outer;  // of taps 0 and 3, signed
  uint32_t fine;   // lower 8 bits of the weights of taps 1, 2, 0, 3

  LGFAST_TEAM int shift() const { return place >> 2; }
};

template <bool kIsRow, typename T, class Team>
struct LinePass {
  static constexpr int kPixels = 4;        // of an item, neighbours in a line
  static constexpr uint32_t kMargin = 32;  // of an estimate, in 65536ths
  const BicubicPass<T, Team>& p;
  LineWeights* lines;
  DoubtList<Team::kIsShared> list;

  LGFAST_TEAM explicit LinePass(const BicubicPass<T, Team>& pass) : p(pass) {
    lines = reinterpret_cast<LineWeights*>(p.plane(3));
    list = p.list_after(p.size * int(sizeof(LineWeights)));
  }

  LGFAST_TEAM LineWeights weigh(int line) const {
    const double point = kIsRow ? p.a.x(0.5, center_of(line)) : p.a.y(center_of(line), 0.5), low = point - 1.5;
    const int shift = floor_of(low), pixel = floor_of(point);
    const CubicWeights w = cubic_weights(float(low - shift), float(1 - (low - shift)));
    constexpr int kOne = 1 << 24;
    int whole[4], rest = kOne;
    for (int k = 0; k < 4; ++k) {
      whole[k] = floor_of(double(w.value[k]) * kOne + 0.5);
      rest -= whole[k];
    }
    const bool is_second = whole[1] > whole[2];  // the largest weight: below one, for 24 bits
    const int larger = (is_second ? whole[1] : whole[2]) + rest, excess = larger < kOne ? 0 : larger - kOne + 1;
    const int smaller = (is_second ? whole[2] : whole[1]) + excess;
    whole[1] = is_second ? larger - excess : smaller;
    whole[2] = is_second ? smaller : larger - excess;
    const double part = point - pixel;
    const int is_at_edge = part < 1e-6 || part > 1 - 1e-6;
    const auto lower = [&](int k) { return uint32_t(whole[k]) & 0xff; };
    return {shift * 4 | is_at_edge << 1 | (pixel - shift - 1), uint32_t(whole[1]) >> 8 | uint32_t(whole[2]) >> 8 << 16,
            (uint32_t(whole[0]) >> 8 & 0xffff) | uint32_t(whole[3]) >> 8 << 16,
            lower(1) | lower(2) << 8 | lower(0) << 16 | lower(3) << 24};
  }

  LGFAST_TEAM const uint8_t* tap(const uint8_t* plane, int line, int along) const {
    return plane + (kIsRow ? line * p.pitch + along : along * p.pitch + line);
  }
  LGFAST_TEAM bool is_inner(int first) const { return uint32_t(first) <= uint32_t(p.size - 8); }

  // Reads pixels first ... first + 6 of a line.
  LGFAST_TEAM void gather(const uint8_t* plane, int line, int first, uint32_t (&words)[2]) const {
    const int pitch = p.pitch;
    if (kIsRow) {
      const uint32_t* from = reinterpret_cast<const uint32_t*>(tap(plane, line, first & ~3));
      const uint32_t selector = 0x3210 + uint32_t(first & 3) * 0x1111;
      words[0] = select_bytes(from[0], from[1], selector);
      words[1] = select_bytes(from[1], from[2], selector);
    } else {
      const uint8_t* from = tap(plane, line, first);
      words[0] = from[0] | from[pitch] << 8 | from[2 * pitch] << 16 | uint32_t(from[3 * pitch]) << 24;
      words[1] = from[4 * pitch] | from[5 * pitch] << 8 | from[6 * pitch] << 16;
    }
  }
  LGFAST_TEAM void gather_clamped(const uint8_t* plane, int line, int first, uint32_t (&words)[2]) const {
    words[0] = words[1] = 0;
    LGFAST_NO_UNROLL
    for (int k = 3; k >= 0; --k) {
      words[0] = words[0] << 8 | *tap(plane, line, clamp(first + k, 0, p.size - 1));
      words[1] = words[1] << 8 | *tap(plane, line, clamp(first + 4 + k, 0, p.size - 1));
    }
  }

  LGFAST_TEAM void store(int c, int line, int along, uint32_t bytes) const {
    const int size = p.size, step = kIsRow ? 1 : size;
    T* out = p.moved + c * size * size + (kIsRow ? line * size + along : along * size + line);
    const auto value = [&](int k) { return p.shown(c, select_byte(bytes, k)); };
    if (kIsRow && size % kPixels == 0) return Team().write(out, value);
    for (int k = 0; k < kPixels; ++k) {
      if (size % kPixels == 0 || along + k < size) out[k * step] = value(k);
    }
  }

  // Puts the fill where the source point lies outside, and corrects the doubts.
  LGFAST_TEAM uint32_t fill_outside(const LineWeights& w, int c, int along, uint32_t bytes, uint32_t& doubts) const {
    const int pixel = along + w.shift() + 1 + (w.place & 1);
    LGFAST_NO_UNROLL
    for (int k = 0; k < kPixels; ++k) {
      const bool is_inside = uint32_t(pixel + k) < uint32_t(p.size);
      const uint32_t byte = 255u << (8 * k), bit = 1u << k;
      doubts = (w.place & 2) ? doubts | bit : is_inside ? doubts : doubts & ~bit;
      bytes = is_inside ? bytes : (bytes & ~byte) | uint32_t(p.fill_of(c)) << (8 * k);
    }
    return bytes;
  }

  // Makes the pixels of an item; returns those in doubt: bit 4 c + k.
  template <bool kIsInner>
  LGFAST_TEAM uint32_t make(int line, int along) const {
    const LineWeights w = lines[line];
    const int first = along + w.shift();
    uint32_t all_doubts = 0;
    for (int c = 0; c < 3; ++c) {
      uint32_t words[2], doubts = 0;
      if (kIsInner) {
        gather(p.plane(c), line, first, words);
      } else {
        gather_clamped(p.plane(c), line, first, words);
      }
      int sum[kPixels];  // in 65536ths, plus the margin: whole numbers whose rest is small are in doubt
      uint32_t least = ~0u;
      for (int k = 0; k < kPixels; ++k) {
        const uint32_t four = select_bytes(words[0], words[1], 0x3021 + 0x1111 * k);  // taps 1, 2, 0, 3
        const int fine = int(dot_bytes(four, w.fine, kMargin << 8) >> 8);
        sum[k] = dot_high_bytes(four, w.outer, dot_low_bytes(four, w.inner, fine));
        const uint32_t rest = uint32_t(sum[k]) << 16;
        least = rest < least ? rest : least;
      }
      constexpr uint32_t kLimit = kMargin << 17;
      if (least < kLimit) {
        for (int k = 0; k < kPixels; ++k) {
          const uint32_t four = select_bytes(words[0], words[1], 0x3210 + 0x1111 * k);
          const bool is_flat = four == select_bytes(four, 0, 0);  // of taps that are all alike the estimate is exact
          doubts |= uint32_t(uint32_t(sum[k]) << 16 < kLimit && !is_flat) << k;
        }
      }
      uint32_t bytes = saturate_bytes(sum[0] >> 16, sum[1] >> 16, sum[2] >> 16, sum[3] >> 16);
      if (!kIsInner) bytes = fill_outside(w, c, along, bytes, doubts);
      store(c, line, along, bytes);
      all_doubts |= doubts << (4 * c);
    }
    return all_doubts;
  }

  LGFAST_TEAM void run() const {
    const int size = p.size, groups = ceil_div(size, kPixels);
    Team().each(size, [&](int line) {
      if (line == 0) list.clear();
      lines[line] = weigh(line);
    });
    const auto exact = [&](uint32_t item) {
      const int bit = int(item >> 24), i = int(item & 0xffffff), line = kIsRow ? i / groups : i % size;
      const int along = (kIsRow ? i % groups : i / size) * kPixels + bit % 4;
      if (along >= size) return;
      p.template make_exact<BicubicLinePixels<kIsRow, 1>>(bit / 4, kIsRow ? line : along, kIsRow ? along : line);
    };
    // The rows made begin at multiples of kPixels.
    const int first_item = kIsRow ? p.made.begin * groups : p.made.begin / kPixels * size;
    const int end_item = kIsRow ? p.made.end * groups : ceil_div(p.made.end, kPixels) * size;
    LGFAST_NO_UNROLL
    for (int i = first_item + thread_index(); i < end_item; i += block_size()) {
      const int line = kIsRow ? i / groups : i % size, along = (kIsRow ? i % groups : i / size) * kPixels;
      const int first = along + lines[line].shift();
      if (is_inner(first)) {
        list.add(make<true>(line, along), uint32_t(i), exact);
      } else if (is_outside(first)) {
        for (int c = 0; c < 3; ++c) store(c, line, along, p.fill_of(c) * 0x01010101u);
      }
    }
    // What is neither inner nor outside: at most two items at either end of a line.
    LGFAST_NO_UNROLL
    for (int k = thread_index(); k < 4 * size; k += block_size()) {
      const int line = k % size, end = k / size, shift = lines[line].shift();
      const int along = round_up_signed((end < 2 ? kLeastEdge : size - 7) - shift) + (end & 1) * kPixels;
      const int first = along + shift;
      if (along < 0 || along >= size || is_inner(first) || is_outside(first)) continue;
      const int i = kIsRow ? line * groups + along / kPixels : along / kPixels * size + line;
      if (!Team::kIsWhole && (i < first_item || i >= end_item)) continue;
      list.add(make<false>(line, along), uint32_t(i), exact);
    }
    list.settle(exact);
  }

  static constexpr int kLeastEdge = -5;  // the first tap of an item that has a pixel inside
  LGFAST_TEAM bool is_outside(int first) const { return first < kLeastEdge || first >= p.size - 1; }
  LGFAST_TEAM static int round_up_signed(int value) { return (value + kPixels - 1) & ~(kPixels - 1); }
};

template <bool kIsRow, typename T, class Team>
LGFAST_CALLED void move_lines(uint8_t* memory, T* moved, Affine a, int fill0, int fill1, int fill2, int size,
                              Rows made) {
  const BicubicPass<T, Team> pass(memory, moved, a, fill0, fill1, fill2, size, made);
  LinePass<kIsRow, T, Team>(pass).run();
}

}  // namespace lgfast
#endif
