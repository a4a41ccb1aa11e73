"""Hold a decoded split: images of any size, labels, and the hash of both."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import Field, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from lgfast.data.errors import some
from lgfast.data.permutation import random_permutation
from lgfast.spec.pixels import RGB, PixelFormat

HASH_CHUNK_BYTES = 32 << 20  # the size of a chunk; several cores share the hashing

Images = TypeVar("Images", bound="LabelledImages")


class LabelledImages(ABC):
    """The common part of a decoded split and a split of image files: labels, subsets, and the hash of the content."""

    name: str
    labels: Tensor  # int64 [n]; float32 [n, K] of 0 and 1 where an image may have several classes
    class_names: tuple[str, ...]
    content_hash: str
    paths: Sequence[Path] | None  # of the image files; None: there are none, or they are not known
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # each kind is a dataclass

    @abstractmethod
    def pick(self, indices: Tensor) -> dict[str, Any]:
        """Return the fields with one entry per image, except labels, for the images at `indices`."""

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, index: int) -> str:
        """Return the name of image `index` for messages."""
        return f"image {index} of {self.name}" if self.paths is None else str(self.paths[index])

    def named(self, index: int) -> str:
        """Return the class of image `index`; several are separated by ;."""
        label = self.labels[index]
        return self.class_names[int(label)] if label.ndim == 0 else several(self.class_names, label > 0)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def empty_classes(self) -> list[str]:
        """Return the names of the classes that have no image."""
        return [name for name, count in zip(self.class_names, self.class_counts().tolist(), strict=True) if count == 0]

    def class_counts(self) -> Tensor:
        """Return int64 [K], the number of images of each class."""
        if self.labels.ndim == 2:
            return self.labels.sum(0).long()
        return torch.bincount(self.labels, minlength=self.num_classes)

    @property
    def strata(self) -> Tensor:
        """The value that every part of a split has its share of, int64 [n]: an image's class, the rarest of several, or
        num_classes where it has none."""
        if self.labels.ndim == 1:
            return self.labels
        rarity = torch.where(self.labels > 0, self.class_counts(), len(self) + 1).min(1)
        return torch.where(self.labels.any(1), rarity.indices, self.num_classes)

    def subset(self: Images, indices: Tensor) -> Images:
        """Return the images at `indices` (int64 [m]), in that order."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < len(self)):
            low, high = int(indices.min()), int(indices.max())
            raise ValueError(f"subset: indices must lie in [0, {len(self)}), got values from {low} to {high}")
        digest = hashlib.blake2b(self.content_hash.encode() + indices.numpy().tobytes(), digest_size=16)
        return replace(self, labels=self.labels[indices], content_hash=digest.hexdigest(), **self.pick(indices))

    def relabel(self: Images, class_names: tuple[str, ...]) -> Images:
        """Return the same images with labels that index `class_names`, which has all of this set's classes and may have
        more.

        Raises:
            ValueError: `class_names` lacks a class of this set.
        """
        if class_names == self.class_names:
            return self
        label_of = {name: label for label, name in enumerate(class_names)}
        missing = [name for name in self.class_names if name not in label_of]
        if missing:
            raise ValueError(f"relabel: class_names must have every class of {self.name}, it lacks {some(missing)}")
        new_labels = torch.tensor([label_of[name] for name in self.class_names], dtype=torch.int64)
        if self.labels.ndim == 1:
            labels = new_labels[self.labels]
        else:
            labels = self.labels.new_zeros(len(self), len(class_names)).index_copy(1, new_labels, self.labels)
        return self.with_labels(labels, class_names)

    def with_labels(self: Images, labels: Tensor, class_names: tuple[str, ...]) -> Images:
        """Return the same images with other labels, int64 [n] or float32 [n, K]."""
        names = "\n".join(class_names).encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(self.content_hash.encode() + labels.numpy().tobytes() + names, digest_size=16)
        return replace(self, labels=labels, class_names=class_names, content_hash=digest.hexdigest())

    def limit(self: Images, num_images: int, seed: int = 0) -> Images:
        """Return `num_images` random images with the class proportions of the whole set, in their original order."""
        if not 0 < num_images <= len(self):
            raise ValueError(f"limit: num_images must lie in [1, {len(self)}], got {num_images}")
        return self.subset(stratified_indices(self.strata, num_images, seed))


@dataclass(frozen=True)
class ImageSet(LabelledImages):
    """Images of one split, decoded to pixels of one format and stored back to back.

    Image i is the bytes from `offsets[i]` on, in row-major [h, w, channels] order, with (h, w) = `sizes[i]`.
    A subset shares the pixels of its parent. All tensors live on the CPU; `pixels` may be a memory-mapped file.
    """

    name: str
    pixels: Tensor  # uint8 [num_bytes]
    offsets: Tensor  # int64 [n]
    sizes: Tensor  # int32 [n, 2], height and width
    labels: Tensor  # int64 [n]; float32 [n, K] of 0 and 1 where an image may have several classes
    class_names: tuple[str, ...]
    content_hash: str
    paths: Sequence[Path] | None = None  # of the files that were decoded, where they are known
    format: PixelFormat = RGB

    def image(self, index: int) -> np.ndarray:
        """Return image `index` as an array [h, w, channels] that shares memory with `pixels`."""
        height, width = self.sizes[index].tolist()
        start, format = int(self.offsets[index]), self.format
        content = self.pixels[start : start + height * width * format.num_bytes].numpy()
        return content.view(format.dtype).reshape(height, width, format.channels)

    def pick(self, indices: Tensor) -> dict[str, Any]:
        paths = None if self.paths is None else [self.paths[index] for index in indices.tolist()]
        return {"offsets": self.offsets[indices], "sizes": self.sizes[indices], "paths": paths}


def several(class_names: Sequence[str], is_there: Iterable[Any]) -> str:
    """The names of the classes that are there, with ; between."""
    return ";".join(name for name, there in zip(class_names, is_there, strict=True) if there)


def stratified_indices(labels: Tensor, num_images: int, seed: int) -> Tensor:
    """Choose `num_images` random items, return sorted indices; each class gets its share, rounded by largest
    remainder."""
    counts = torch.bincount(labels)
    share = counts.double() * num_images / len(labels)
    quota = share.floor().long()
    remainder_order = torch.argsort(quota - share, stable=True)  # largest remainder first
    quota[remainder_order[: num_images - int(quota.sum())]] += 1

    order = random_permutation(len(labels), seed)
    order = order[torch.argsort(labels[order], stable=True)]  # grouped by class, random inside a class
    rank_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[rank_in_class < quota.repeat_interleave(counts)].sort().values


def split_holdout(image_set: Images, fraction: float, seed: int = 0) -> tuple[Images, Images]:
    """Split a set into (train, val), `fraction` of every class going to val.

    Raises:
        ValueError: the fraction leaves one of the two empty.
    """
    num_val = round(len(image_set) * fraction)
    if not 0 < num_val < len(image_set):
        raise ValueError(
            f"split_holdout: fraction must leave images on both sides, got {fraction} of {len(image_set)} images"
        )
    val = stratified_indices(image_set.strata, num_val, seed)
    is_train = torch.ones(len(image_set), dtype=torch.bool)
    is_train[val] = False
    return image_set.subset(is_train.nonzero().flatten()), image_set.subset(val)


def image_offsets(sizes: Tensor, format: PixelFormat = RGB) -> Tensor:
    """Return each image's byte offset where images of `sizes` (int32 [n, 2]) are stored back to back."""
    num_bytes = sizes.long().prod(1) * format.num_bytes
    return num_bytes.cumsum(0) - num_bytes


def hash_content(
    pixels: Tensor, sizes: Tensor, labels: Tensor, class_names: tuple[str, ...], format: PixelFormat = RGB
) -> str:
    """Hash everything that a run can see of a data set, whatever its folder."""
    total = hashlib.blake2b(digest_size=16)
    index = (sizes.numpy().tobytes(), labels.numpy().tobytes(), "\n".join(class_names).encode("utf-8", "surrogatepass"))
    for part in (*chunk_digests(pixels), *index):
        total.update(part)
    total.update(str(format).encode() if format != RGB else b"")
    return total.hexdigest()


def chunk_digests(content: Tensor) -> list[bytes]:
    """Hash the chunks of a flat uint8 tensor."""
    flat = content.numpy()
    chunks = [flat[start : start + HASH_CHUNK_BYTES] for start in range(0, len(flat), HASH_CHUNK_BYTES)]
    with ThreadPoolExecutor() as pool:  # hashlib releases the GIL
        return list(pool.map(lambda chunk: hashlib.blake2b(chunk).digest(), chunks))


def image_set_from_arrays(name: str, images: np.ndarray, labels, class_names) -> ImageSet:
    """Build a set from images that are already in memory.

    Args:
        images: uint8 [n, h, w, 3].
        labels: n integers in [0, len(class_names)).
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).flatten()
    sizes = torch.tensor(images.shape[1:3], dtype=torch.int32).expand(len(images), 2).contiguous()
    labels = torch.as_tensor(labels, dtype=torch.int64)
    class_names = tuple(class_names)
    content_hash = hash_content(pixels, sizes, labels, class_names)
    return ImageSet(name, pixels, image_offsets(sizes), sizes, labels, class_names, content_hash)


def format_of(image: np.ndarray) -> PixelFormat:
    """Return the format of an image [h, w, channels]."""
    return PixelFormat(image.dtype.name, image.shape[2])


def image_set_from_images(name: str, images: Sequence[np.ndarray]) -> ImageSet:
    """Build a set from images [h, w, channels] of one format and any size without labels; all are in one class, 0."""
    format = format_of(images[0])
    pixels = torch.from_numpy(np.concatenate([image.reshape(-1) for image in images]).view(np.uint8))
    sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int32)
    labels = torch.zeros(len(images), dtype=torch.int64)
    content_hash = hash_content(pixels, sizes, labels, ("",), format)
    offsets = image_offsets(sizes, format)
    return ImageSet(name, pixels, offsets, sizes, labels, ("",), content_hash, format=format)
