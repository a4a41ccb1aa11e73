"""A folder of mixed photographs, as a person has them: JPEG and PNG, some grey, some turned by their EXIF tag alone,
of many sizes, some in folders within their class, and some classes rarer than others.

    python -m tests.mixed_photos OUT    # 900 pictures of ten classes of CIFAR-100
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.ops.real_images import cifar100_strips

RAREST = 0.25  # images of the rarest class over those of the commonest
TURNS = {  # EXIF orientation -> how an upright picture is stored
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def class_sizes(num_images: int, num_classes: int) -> list[int]:
    """Images of each class, falling by one factor from class to class."""
    shares = RAREST ** (np.arange(num_classes) / max(1, num_classes - 1))
    ends = np.round(num_images * np.cumsum(shares) / shares.sum()).astype(int)
    return np.diff(ends, prepend=0).tolist()


def write_mixed_photos(folder: Path, pictures: Mapping[str, Sequence[np.ndarray]], sides: Sequence[int]) -> None:
    """Write pictures (uint8 [h, w, 3]) of each class in changing ways.

    Args:
        folder: receives a folder a class.
        sides: longer sides to enlarge pictures to, in turn.
    """
    for name, images in pictures.items():
        for number, pixels in enumerate(images):
            side = sides[number % len(sides)]
            size = (side, side * 3 // 4) if number % 2 else (side * 3 // 4, side)
            picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
            place = folder / name / (f"trip {number // 5}" if number % 5 == 4 else "")
            place.mkdir(parents=True, exist_ok=True)
            write_photo(picture, place / f"IMG_{number:04}", number)


def write_photo(picture: Image.Image, stem: Path, number: int) -> None:
    """In the way whose turn it is."""
    way = number % 7
    if way == 2 or way == 5:
        picture = picture.convert("L")
    if way == 4 or way == 5:
        picture.save(stem.with_suffix(".png"))
        return
    exif = Image.Exif()
    if way in (3, 6):
        orientation = list(TURNS)[number % len(TURNS)]
        exif[274] = orientation
        picture = picture.transpose(TURNS[orientation])
    picture.save(stem.with_suffix(".JPG" if way == 1 else ".jpg"), quality=92, exif=exif)


def cifar_pictures(num_images: int = 900, num_classes: int = 10) -> dict[str, list[np.ndarray]]:
    """Training images of every tenth class of CIFAR-100."""
    strips = cifar100_strips()
    chosen = strips[3 :: len(strips) // num_classes]  # not the class `train`, the name of a part
    return {
        strip.stem: list(np.asarray(Image.open(strip).convert("RGB")).reshape(-1, 32, 32, 3)[:count])
        for strip, count in zip(chosen, class_sizes(num_images, num_classes), strict=True)
    }


if __name__ == "__main__":
    write_mixed_photos(Path(sys.argv[1]), cifar_pictures(), (96, 128, 160, 240))
