// Rows of an image, and how several blocks of a GPU share its view: each makes rows of it, and of what leads there.
#pragma once

#include "augment/augment.h"
#include "common/arithmetic.h"
#include "common/host_device.h"

namespace lgfast {

constexpr int kMaxImageParts = 8;  // of an image; more would repeat too much
constexpr int kRowsTogether = 4;   // parts, and the rows of the images before that they need, begin at multiples of it

struct Rows {
  int begin, end;
  LGFAST_HOST_DEVICE int count() const { return end - begin; }
};

// The rows, and those that are shown in their place upside down.
LGFAST_HOST_DEVICE Rows with_mirrored(Rows rows, int size) {
  const int begin = smaller(rows.begin, size - rows.end);
  return {begin, size - begin};
}

// Whether an operation needs all rows, whichever it makes.
LGFAST_HOST_DEVICE bool counts_values(AugmentOp op) {
  return op == AugmentOp::kAutoContrast || op == AugmentOp::kEqualize || op == AugmentOp::kContrast;
}

// Parts begin at multiples of this many rows: a row of the teacher's view is then made of rows of one part. The size,
// where that allows one part alone.
LGFAST_HOST_DEVICE int part_unit(int size, int teacher_size) {
  if (teacher_size == 0) return kRowsTogether;
  if (size % teacher_size != 0) return size;
  int unit = size / teacher_size;
  while (unit % kRowsTogether != 0) unit += size / teacher_size;
  return unit < size ? unit : size;
}

LGFAST_HOST_DEVICE int num_units(int size, int teacher_size) { return ceil_div(size, part_unit(size, teacher_size)); }

LGFAST_HOST_DEVICE int most_parts(int size, int teacher_size) {
  return smaller(num_units(size, teacher_size), kMaxImageParts);
}

// The rows of a view that part 0 ... num_parts - 1 makes.
LGFAST_HOST_DEVICE Rows rows_of_part(int part, int num_parts, int size, int teacher_size) {
  const int unit = part_unit(size, teacher_size), units = num_units(size, teacher_size);
  return {units * part / num_parts * unit, smaller(units * (part + 1) / num_parts * unit, size)};
}

}  // namespace lgfast
