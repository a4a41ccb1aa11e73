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

// Makes row b of the batch. A crop that does not fit into the working memory gives NaN, since a GPU cannot raise.
template <typename T, class Team>
LGFAST_TEAM void augment_image(WorkingImage<Team>& image, int64_t b) {
  const AugmentParams& p = image.params;
  const int size = image.size;
  T* view = static_cast<T*>(p.images) + b * 3 * size * size;
  T* teacher = static_cast<T*>(p.teacher) + b * 3 * p.teacher_size * p.teacher_size;
  image.row = p.plan + b * p.num_columns;
  image.moved = reinterpret_cast<uint8_t*>(view);
  image.has_pending = false;
  if (!crop_fits(image.layout, p.resample, image.plan_int(kCropHeight), image.plan_int(kCropWidth))) {
    image.team.each(3 * size * size, [&](int i) { view[i] = from_float<T>(NAN); });
    image.team.each(3 * p.teacher_size * p.teacher_size, [&](int i) { teacher[i] = from_float<T>(NAN); });
    return;
  }
  resize_crop(image, p.indices[b]);
  if (image.plan_int(kFlip) & kUpsideDown) flip_vertically(image);
  for (int column = kFirstOp; column + 1 < p.num_columns; column += 2) {
    apply_op(image, AugmentOp(int(image.row[column])), image.row[column + 1]);
  }
  write_view(image, view);
  erase(image, view);
  if (p.teacher_size > 0) write_teacher_view(image, view, teacher);
}

}  // namespace lgfast
