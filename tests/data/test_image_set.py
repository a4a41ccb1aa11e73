"""ImageSet: images of any size come back as stored; subsets are stratified and deterministic."""

import numpy as np
import pytest
import torch

from lgfast.data import load_dataset
from lgfast.data.image_set import ImageSet, hash_content, image_offsets, image_set_from_arrays, split_holdout


def numbered_set(counts, size=(2, 3)):
    """A set with counts[k] images of class k; image i is filled with the value i."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, *size, 3), np.uint8)
    return image_set_from_arrays("numbered", images, labels, [f"class{k}" for k in range(len(counts))])


def ragged_set(shapes):
    images = [np.full((h, w, 3), i, np.uint8) for i, (h, w) in enumerate(shapes)]
    pixels = torch.from_numpy(np.concatenate([image.ravel() for image in images]))
    sizes, labels = torch.tensor(shapes, dtype=torch.int32), torch.zeros(len(shapes), dtype=torch.int64)
    return ImageSet("ragged", pixels, image_offsets(sizes), sizes, labels, ("only",), "hash")


def test_images_come_back_as_stored():
    image_set = numbered_set([3, 2])
    assert len(image_set) == 5
    assert all(np.array_equal(image_set.image(i), np.full((2, 3, 3), i)) for i in range(5))


def test_ragged_images_keep_their_sizes():
    image_set = ragged_set([(2, 3), (5, 1), (2, 3)])
    assert [image_set.image(i).shape for i in range(3)] == [(2, 3, 3), (5, 1, 3), (2, 3, 3)]
    assert [image_set.image(i).max() for i in range(3)] == [0, 1, 2]
    assert image_set.subset([0, 2]).sizes.tolist() == [[2, 3], [2, 3]]


def test_subset_selects_in_order_and_shares_pixels():
    image_set = numbered_set([3, 3])
    subset = image_set.subset([4, 1])
    assert [subset.image(i)[0, 0, 0] for i in range(2)] == [4, 1]
    assert subset.labels.tolist() == [1, 0]
    assert subset.pixels.data_ptr() == image_set.pixels.data_ptr()
    assert len({image_set.content_hash, subset.content_hash, image_set.subset([1, 4]).content_hash}) == 3


def test_subset_rejects_indices_outside():
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 5\), got values from -1 to 2"):
        numbered_set([3, 2]).subset([2, -1])


@pytest.mark.parametrize("num_images", [1, 7, 10, 99, 100])
def test_limit_keeps_class_proportions(num_images):
    counts = torch.tensor([50, 30, 20])
    limited = numbered_set(counts).limit(num_images, seed=1)
    assert len(limited) == num_images
    got = torch.bincount(limited.labels, minlength=3)
    assert ((got - counts * num_images / 100).abs() < 1).all()  # largest remainder is never a whole image off
    kept = [int(limited.image(i)[0, 0, 0]) for i in range(num_images)]
    assert kept == sorted(set(kept))


def test_limit_depends_on_the_seed_only():
    image_set = numbered_set([50, 50])
    assert image_set.limit(20, seed=1).content_hash == image_set.limit(20, seed=1).content_hash
    assert image_set.limit(20, seed=1).content_hash != image_set.limit(20, seed=2).content_hash


def test_limit_rejects_more_images_than_there_are():
    with pytest.raises(ValueError, match=r"num_images must lie in \[1, 5\], got 6"):
        numbered_set([3, 2]).limit(6)


def test_holdout_splits_every_class_and_loses_nothing():
    image_set = numbered_set([40, 20, 10])
    train, val = split_holdout(image_set, fraction=0.1, seed=0)
    assert torch.bincount(val.labels).tolist() == [4, 2, 1]
    values = [int(part.image(i)[0, 0, 0]) for part in (train, val) for i in range(len(part))]
    assert sorted(values) == list(range(70))


def test_holdout_rejects_an_empty_side():
    with pytest.raises(ValueError, match=r"fraction must leave images on both sides, got 0.01 of 5"):
        split_holdout(numbered_set([3, 2]), fraction=0.01)


def test_content_hash_sees_every_part():
    pixels, sizes, labels = torch.zeros(24, dtype=torch.uint8), torch.tensor([[2, 2], [2, 2]]), torch.tensor([0, 1])
    changed = pixels.clone()
    changed[-1] = 1
    variants = [
        (pixels, sizes, labels, ("a", "b")),
        (changed, sizes, labels, ("a", "b")),
        (pixels, torch.tensor([[1, 4], [2, 2]]), labels, ("a", "b")),
        (pixels, sizes, labels.flip(0), ("a", "b")),
        (pixels, sizes, labels, ("a", "c")),
    ]
    assert len({hash_content(*variant) for variant in variants}) == len(variants)


def test_labels_under_other_class_names():
    digits = load_dataset("digits", split="test")
    names = ("x", *reversed(digits.class_names))
    renamed = digits.relabel(names)
    assert [names[label] for label in renamed.labels] == [digits.class_names[label] for label in digits.labels]
    assert renamed.num_classes == 11 and renamed.content_hash != digits.content_hash
    assert digits.relabel(digits.class_names) is digits
    with pytest.raises(ValueError, match=r"relabel: class_names must have every class of digits-test, it lacks 8; 9"):
        digits.relabel(digits.class_names[:8])
