// One image of a batch, from its uint8 pixels and its row of the plan to the normalised views: the whole algorithm, for
// a team that is one CPU thread or one CUDA block (team.h).
//
//   resize_crop.h  crop to planes      rand_augment.h  planes to planes      write_view.h  planes to views
#pragma once

#include <cmath>

#include "augment/rand_augment.h"
#include "augment/resize_crop.h"
#include "augment/write_view.h"

namespace lgfast {

// Whether the resized crop is the view, but for operations that look at one value only.
template <class Team>
LGFAST_TEAM bool crop_is_view(const WorkingImage<Team>& image, const Crop& crop, const ValueOps& ops) {
  const bool is_moved = (crop.shift_y | crop.shift_x | crop.is_upside_down) != 0;
  return Team::kHeldRows > 0 && is_dense(image) && !is_moved && crop.height <= image.size && ops.are_all;
}

// Makes the view of row b of the batch. A team that does not make whole images makes the `rows` of a part of it
// (augment_rows.h), and `moved` is memory for [3, S, S] of T. A crop that does not fit into the working memory gives
// NaN, since a GPU cannot raise.
template <typename T, class Team>
LGFAST_TEAM void augment_image(WorkingImage<Team>& image, int64_t b, Rows rows = {}, void* moved = nullptr) {
  const AugmentParams& p = image.params;
  const int size = image.size;
  T* view = static_cast<T*>(p.images) + b * 3 * size * size;
  T* teacher = static_cast<T*>(p.teacher) + b * 3 * p.teacher_size * p.teacher_size;
  image.row = p.plan + b * p.num_columns;
  image.moved = static_cast<uint8_t*>(Team::kIsWhole ? view : moved);
  image.has_pending = false;
  const Crop crop = read_crop(image, p.indices[b]);
  const ValueOps ops = value_ops(image, kFirstOp);
  if (!crop_fits(image.layout, p.resample, crop.height, crop.width)) {
    if (!Team::kIsWhole && rows.begin > 0) return;
    image.team.each(3 * size * size, [&](int i) { view[i] = from_float<T>(NAN); });
    image.team.each(3 * p.teacher_size * p.teacher_size, [&](int i) { teacher[i] = from_float<T>(NAN); });
    return;
  }
  const bool is_direct = crop_is_view(image, crop, ops);
  if (is_direct) make_view_table<T>(image, ops);
  if (!Team::kIsWhole) {
    const Rows needed = rows_needed(image, kFirstOp, rows);
    image.held_rows = crop.is_upside_down ? with_mirrored(needed, size) : needed;
  }
  resize_crop(image, crop, is_direct ? view : nullptr);
  if (!is_direct) {
    if (crop.is_upside_down) flip_vertically(image);
    if (!apply_ops<T>(image, view, rows)) {
      make_view_table<T>(image, {});
      image.team.meet();
      write_view(image, view);
    }
  }
  erase(image, view, rows);
  if (p.teacher_size > 0) write_teacher_view(image, view, teacher, rows);
}

}  // namespace lgfast
