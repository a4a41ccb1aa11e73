"""Damaged files of every kind: a reader gives what is there or one error that names the file, and nothing else.

A fixed seed damages each file in some ways: flipped bits, missing parts, repeated parts, an end that is cut off.
"""

import numpy as np
import pytest
import torch

from lgfast.data import load_dataset
from lgfast.data.cache_file import UselessCacheError, open_cache, read_cache, read_footer
from lgfast.data.decode import Decoding, decode_image
from lgfast.runtime.shared_files import owners
from tests.data.layouts import write_chaoyang, write_cifar10, write_cifar100, write_flowers, write_tiny_imagenet
from tests.data.pictures import kinds

PER_PICTURE = 25
PER_FILE = 60


def damaged(content, rng):
    """The content with one fault."""
    content = bytearray(content)
    first, second = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    fault = rng.integers(5)
    if fault == 0:
        for place in rng.integers(0, len(content), rng.integers(1, 9)):
            content[place] ^= 1 << rng.integers(8)
    elif fault == 1:
        del content[first:second]
    elif fault == 2:
        content[first:first] = content[first:second]
    elif fault == 3:
        del content[first:]
    else:
        content[first : first + 4] = rng.bytes(4)
    return bytes(content)


def draw(content, count):
    rng = np.random.default_rng(0)
    return [damaged(content, rng) for _ in range(count)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", kinds())
def test_damaged_pictures(tmp_path, name):
    path, outcomes = tmp_path / name, set()
    for content in draw(kinds()[name], PER_PICTURE):
        path.write_bytes(content)
        try:
            pixels = decode_image(path, Decoding(exif_orientation=True, stored_side=50, max_pixels=10**6))
        except ValueError as error:
            assert str(error).startswith(f"{path}: cannot be decoded (") and "\n" not in str(error)
            outcomes.add("refused")
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
            outcomes.add("decoded")
    assert "refused" in outcomes


def test_a_fraction_for_an_offset(tmp_path):
    """The offset is of a TIFF's strips; Pillow raises a TypeError there."""
    content = bytearray(kinds()["rgb.tif"])
    place = content.index((273).to_bytes(2, "little") + (4).to_bytes(2, "little"))
    content[place + 2] = 5  # RATIONAL
    path = tmp_path / "fraction.tif"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"fraction.tif: cannot be decoded \("):
        decode_image(path)


def described_files(tmp_path):
    """(dataset, the file that describes it or holds it) for each reader of such files."""
    write_cifar100(tmp_path)
    write_cifar10(tmp_path)
    write_flowers(tmp_path)
    write_chaoyang(tmp_path)
    write_tiny_imagenet(tmp_path)
    return {
        "cifar100": ("cifar-100-python/train", "cifar-100-python/meta"),
        "cifar10": ("cifar-10-batches-py/data_batch_2", "cifar-10-batches-py/batches.meta"),
        "flowers102": ("flowers-102/setid.mat", "flowers-102/imagelabels.mat"),
        "chaoyang": ("chaoyang/train.json",),
        "tiny_imagenet": ("tiny-imagenet-200/val/val_annotations.txt",),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cifar100", "cifar10", "flowers102", "chaoyang", "tiny_imagenet"])
def test_damaged_files_of_a_dataset(tmp_path, name):
    split = "test" if name == "tiny_imagenet" else "train"
    for file in described_files(tmp_path)[name]:
        path, refused = tmp_path / file, 0
        whole = path.read_bytes()
        for content in draw_outside_pixels(whole, PER_FILE):
            path.write_bytes(content)
            try:
                images = load_dataset(name, tmp_path, split)
            except (ValueError, FileNotFoundError) as error:
                assert str(tmp_path) in str(error) and "\n" not in str(error)
                refused += 1
            else:
                assert max(images.labels.tolist(), default=0) < images.num_classes
        path.write_bytes(whole)
        assert refused > PER_FILE / 4


def draw_outside_pixels(content, count):
    """Faults at the ends of a large file, which say what the pixels between them are."""
    end = min(len(content) // 2, 400)
    start, middle, rest = content[:end], content[end : len(content) - end], content[len(content) - end :]
    half = count // 2
    return [part + middle + rest for part in draw(start, half)] + [start + middle + part for part in draw(rest, half)]


def test_damaged_caches(tmp_path):
    write_chaoyang(tmp_path)
    before = load_dataset("chaoyang", tmp_path)
    (path,) = (tmp_path / ".lgfast_cache").glob("*.lgfast")
    whole = path.read_bytes()
    for content in draw(whole, PER_FILE) + draw_outside_pixels(whole, PER_FILE):
        path.write_bytes(content)
        try:
            with open_cache(path, owners()) as file:
                images = read_cache(file, read_footer(file))
        except UselessCacheError:
            continue
        assert images.content_hash == before.content_hash and images.class_names == before.class_names
        assert torch.equal(images.pixels, before.pixels) and torch.equal(images.labels, before.labels)
    assert load_dataset("chaoyang", tmp_path).content_hash == before.content_hash
