"""Real pictures for tests: CIFAR-100 where it is at hand, else its few samples here and pieces of photographs."""

import functools
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

MOST_PER_CLASS = 10
_BESIDE_CHECKOUT = "shared/data/cifar100/train"


def cifar100_strips() -> list[Path]:
    """One lossless picture per class, its 32x32 images stacked top to bottom; empty where there are none.

    Looked for in LGFAST_CIFAR100_STRIPS and in shared/data/cifar100/train beside the checkout.
    """
    root = Path(__file__).resolve().parents[2]
    places = [os.environ.get("LGFAST_CIFAR100_STRIPS"), *(parent / _BESIDE_CHECKOUT for parent in root.parents[:2])]
    found = (sorted(Path(place).glob("*.webp")) for place in places if place)
    return next((strips for strips in found if strips), [])


@functools.cache  # decodes two JPEG files
def photographs() -> list[np.ndarray]:
    """Two real photographs, uint8 (427, 640, 3)."""
    return load_sample_images().images


def sample_images() -> np.ndarray:
    """The 64 images of CIFAR-100 that come with the tests, uint8 (64, 32, 32, 3)."""
    strip = Path(__file__).resolve().parents[1] / "samples" / "cifar100.webp"
    return np.asarray(Image.open(strip).convert("RGB")).reshape(-1, 32, 32, 3)


@functools.cache  # 16 ms a strip
def _images(strip: Path) -> np.ndarray:
    return np.asarray(Image.open(strip).convert("RGB")).reshape(-1, 32, 32, 3)[:MOST_PER_CLASS].copy()


def small_images(count: int) -> np.ndarray:
    """Real 32x32 images of many kinds, uint8 (count, 32, 32, 3); the same ones in every call."""
    random, strips = np.random.default_rng(0), cifar100_strips()
    if strips:
        per_class = -(-count // len(strips))
        chosen = random.permutation(per_class * len(strips))[:count]
        assert per_class <= MOST_PER_CLASS
        return np.stack([_images(strips[i // per_class])[i % per_class] for i in chosen])
    photos, images = photographs(), list(sample_images()[:count])
    for number in range(count - len(images)):
        size = int(random.choice([32, 64, 128, 256]))  # detail of several scales
        top, left = (int(random.integers(0, extent - size)) for extent in (427, 640))
        patch = Image.fromarray(photos[number % 2][top : top + size, left : left + size])
        images.append(np.asarray(patch.resize((32, 32), Image.Resampling.LANCZOS)))
    return np.stack(images)


def pack(images) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """pixels, offsets and sizes of a list of (h, w, 3) arrays, stored back to back."""
    sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int32)
    num_bytes = sizes.long().prod(dim=1) * 3
    pixels = torch.from_numpy(np.concatenate([np.ascontiguousarray(image).reshape(-1) for image in images]))
    return pixels, num_bytes.cumsum(0) - num_bytes, sizes
