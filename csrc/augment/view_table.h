// What the bytes of a channel become in the view: a pending table and the normalisation, as one table.
#pragma once

#include <type_traits>

#include "augment/pixel_ops.h"
#include "augment/working_image.h"
#include "common/float16.h"

namespace lgfast {

// The operations of a plan that are left, where they look at one value only, and at none of the others.
struct ValueOps {
  static constexpr int kMost = 2;
  bool are_all = true;  // whether the plan has no others
  AugmentOp op[kMost] = {AugmentOp::kSkip, AugmentOp::kSkip};
  double argument[kMost] = {};
};

// Reads those from a column on: without branches, so that the loads wait together.
template <class Team>
LGFAST_TEAM ValueOps value_ops(const WorkingImage<Team>& image, int first) {
  const int num_columns = image.params.num_columns;
  ValueOps ops;
  for (int k = 0; k < ValueOps::kMost; ++k) {
    const int column = first + 2 * k;
    ops.op[k] = column + 1 < num_columns ? AugmentOp(int(image.row[column])) : AugmentOp::kSkip;
    ops.argument[k] = column + 1 < num_columns ? image.row[column + 1] : 0;
  }
  for (int k = 0; k < ValueOps::kMost; ++k) {
    const AugmentOp op = ops.op[k];
    ops.are_all &= (op == AugmentOp::kSkip) | (op == AugmentOp::kInvert) | (op == AugmentOp::kPosterize) |
                   (op == AugmentOp::kSolarize) | (op == AugmentOp::kSolarizeAdd) | (op == AugmentOp::kBrightness);
  }
  ops.are_all &= first + 2 * ValueOps::kMost >= num_columns;
  return ops;
}

// [3, 256] of T, in the memory of the histogram.
template <typename T, class Team>
LGFAST_TEAM T* view_table(const WorkingImage<Team>& image) {
  return reinterpret_cast<T*>(image.histogram);
}

// Of a pending table, then operations. The table is there after the next barrier.
template <typename T, class Team>
LGFAST_TEAM void make_view_table(const WorkingImage<Team>& image, const ValueOps& ops) {
  const AugmentParams& p = image.params;
  T* table = view_table<T>(image);
  image.team.each_ahead(kTableSize, [&](int i) {
    int value = image.pending(i);
    for (int k = 0; k < ValueOps::kMost; ++k) value = point_value(ops.op[k], value, ops.argument[k], 0);
    table[i] = from_float<T>((float(value) / 255.0f - p.mean[i / 256]) / p.std[i / 256]);
  });
}

#if defined(LGFAST_DEVICE)
// The same, of values whose bits are the byte.
template <typename T, class Team>
LGFAST_TEAM void make_plain_table(const WorkingImage<Team>& image) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  T* table = view_table<T>(image);
  image.team.each_ahead(kTableSize, [&](int i) { table[i] = bit_cast<T>(Bits(i & 255)); });
}

// Takes the bytes back from where values [3, S, S] of the plain table lie.
template <typename T, class Team>
LGFAST_TEAM void take_moved_values(WorkingImage<Team>& image, Rows rows) {
  constexpr int kStrip = Team::kStrip;
  struct alignas(sizeof(T) * kStrip) Values {
    uint8_t bytes[kStrip][sizeof(T)];
  };
  const int size = image.size;
  const T* moved = reinterpret_cast<const T*>(image.moved);
  image.each_pixel_strip(rows, [&](int c, int y, int s) {
    const T* from = moved + (c * size + y) * size + s * kStrip;
    auto& to = image.strip(image.plane(c), y, s);
    if (size % kStrip == 0) {
      const Values values = *reinterpret_cast<const Values*>(from);
      for (int l = 0; l < kStrip; ++l) to.value[l] = values.bytes[l][0];
    } else {
      for (int l = 0; l < kStrip; ++l)
        to.value[l] = s * kStrip + l < size ? *reinterpret_cast<const uint8_t*>(from + l) : 0;
    }
  });
}
#endif

// Whether a view's rows are dense, and strips of them aligned.
template <class Team>
LGFAST_TEAM bool is_dense(const WorkingImage<Team>& image) {
  return image.params.column_stride == 1 && image.size % Team::kStrip == 0;
}

// Writes a strip of a dense view.
template <typename T, class Team, typename Strip>
LGFAST_TEAM void show_strip(const WorkingImage<Team>& image, T* view, int c, int y, int s, const Strip& values) {
  const AugmentParams& p = image.params;
  const T* shown = view_table<T>(image) + c * 256;
  T* out = view + (c * int(p.channel_stride) + y * int(p.row_stride) + s * Team::kStrip);
  image.team.write(out, [&](int l) { return shown[values.value[l]]; });
}

}  // namespace lgfast
