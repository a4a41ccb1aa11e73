// A turn of the hue as torchvision makes it with Pillow: from RGB to HSV of 8 bits each, and back. For host and device;
// compile without contraction of a * b + c.
#pragma once

#include "augment/working_image.h"

namespace lgfast {

struct Rgb {
  int red, green, blue;
};
struct Hsv {
  int hue, saturation, value;
};

// Pillow computes some of these numbers in double. Where float32 stands here, it gives the same 8 bits for every
// colour.
LGFAST_HOST_DEVICE Hsv hsv_of(const Rgb& pixel) {
  const int brighter = pixel.red > pixel.green ? pixel.red : pixel.green;
  const int darker = pixel.red < pixel.green ? pixel.red : pixel.green;
  const int high = brighter > pixel.blue ? brighter : pixel.blue, low = darker < pixel.blue ? darker : pixel.blue;
  if (high == low) return {0, 0, high};
  const float range = float(high - low);
  const float red = float(high - pixel.red) / range, green = float(high - pixel.green) / range;
  const float blue = float(high - pixel.blue) / range;
  const float sixths = pixel.red == high     ? blue - green
                       : pixel.green == high ? float(2.0 + red - blue)
                                             : float(4.0 + green - red);
  const double turns = sixths * (1.0 / 6.0) + 1.0;
  const float hue = float(turns - int(turns));
  return {int(hue * 255.0f), int(range / float(high) * 255.0f), high};
}

LGFAST_HOST_DEVICE int rounded(float value) { return int(value + 0.5f); }

LGFAST_HOST_DEVICE Rgb rgb_of(const Hsv& pixel) {
  const int v = pixel.value;
  if (pixel.saturation == 0) return {v, v, v};
  const int sextant = pixel.hue * 6 / 255;
  const float rest = float(pixel.hue * 6 - sextant * 255) / 255.0f, saturation = float(pixel.saturation) / 255.0f;
  const int low = rounded(float(v) * (1.0f - saturation));
  const int falling = rounded(float(v) * (1.0f - saturation * rest));
  const int rising = rounded(float(v) * (1.0f - saturation * (1.0f - rest)));
  switch (sextant % 6) {
    case 0: return {v, rising, low};
    case 1: return {falling, v, low};
    case 2: return {low, v, rising};
    case 3: return {low, falling, v};
    case 4: return {rising, low, v};
    default: return {v, low, falling};
  }
}

// steps: 255 are a full turn, of which 8 bits are kept.
template <class Team>
LGFAST_TEAM void turn_hue(WorkingImage<Team>& image, int steps) {
  image.apply_pending();
  const Rows held = image.held();
  image.team.grid(held.count(), image.num_strips(), [&](int row, int s) {
    const int y = held.begin + row;
    auto& r = image.strip(image.plane(0), y, s);
    auto& g = image.strip(image.plane(1), y, s);
    auto& b = image.strip(image.plane(2), y, s);
    LGFAST_NO_UNROLL
    for (int l = 0; l < Team::kStrip; ++l) {
      Hsv pixel = hsv_of({r.value[l], g.value[l], b.value[l]});
      pixel.hue = (pixel.hue + steps) & 255;
      const Rgb turned = rgb_of(pixel);
      r.value[l] = uint8_t(turned.red);
      g.value[l] = uint8_t(turned.green);
      b.value[l] = uint8_t(turned.blue);
    }
  });
}

}  // namespace lgfast
