"""The resident loader gives the timm loader's batches, resumes, shards, and works without keeping the pixels."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from lgfast import _extension
from lgfast.data import EvalLoader, build_train_loader, split_holdout
from lgfast.data.image_set import ImageSet, image_offsets
from lgfast.data.resident_images import ResidentImages
from lgfast.data.resident_loader import ResidentLoader
from lgfast.spec.augment import AugmentSpec
from tests.stand_in_gpus import use_architectures, use_gpus

SPEC = AugmentSpec(image_size=28, teacher_size=4)
NUM_IMAGES, BATCH = 23, 6
NOISE_ERROR = 1e-5  # erase noise: float32 polynomials against float32 libm


@pytest.fixture(scope="module")
def image_set():
    """Random images of many sizes, stored out of order."""
    random = np.random.default_rng(0)
    sizes = torch.from_numpy(random.integers(5, 60, (NUM_IMAGES, 2), dtype=np.int32))
    pixels = torch.from_numpy(random.integers(0, 256, int(sizes.long().prod(1).sum()) * 3, dtype=np.uint8))
    stored = ImageSet("random", pixels, image_offsets(sizes), sizes, torch.arange(NUM_IMAGES) % 3, tuple("abc"), "0")
    return stored.subset(torch.from_numpy(random.permutation(NUM_IMAGES)))


def resident(image_set, epoch=0, **options):
    arguments = {"spec": SPEC, "batch_size": BATCH, "seed": 5} | options
    loader = build_train_loader("resident", image_set, **arguments)
    loader.set_epoch(epoch)
    return loader


def assert_same_batches(got, expected, tolerance=0.0):
    got, expected = list(got), list(expected)
    assert len(got) == len(expected)
    for left, right in zip(got, expected, strict=True):
        assert torch.equal(left.indices, right.indices) and torch.equal(left.labels, right.labels)
        torch.testing.assert_close(left.images, right.images, rtol=0, atol=tolerance)
        torch.testing.assert_close(left.teacher_images, right.teacher_images, rtol=0, atol=tolerance)


@pytest.mark.parametrize("epoch", [0, 3])
def test_gives_the_batches_of_the_timm_loader(image_set, epoch):
    timm = build_train_loader("timm", image_set, SPEC, BATCH, seed=5)
    timm.set_epoch(epoch)
    assert_same_batches(resident(image_set, epoch), timm, NOISE_ERROR)


def test_images_sent_per_batch_give_the_same_views(image_set):
    sent = ResidentLoader(image_set, SPEC, batch_size=BATCH, seed=5, limit_bytes=0)
    assert not sent.images.is_resident
    assert_same_batches(sent, resident(image_set))


def test_limit_decides_what_stays():
    sizes = torch.full((2, 2), 4, dtype=torch.int32)
    pixels, labels = torch.zeros(96, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    images = ImageSet("zeros", pixels, image_offsets(sizes), sizes, labels, ("a",), "0")
    assert ResidentImages(images, torch.device("cpu"), limit_bytes=96).is_resident
    assert not ResidentImages(images, torch.device("cpu"), limit_bytes=95).is_resident


def test_splits_of_one_set_share_its_pixels_on_the_device(image_set):
    train, val = split_holdout(image_set, 0.3)
    loaders = [resident(train, device="meta"), EvalLoader(val, SPEC, device="meta")]
    stored, again = (loader.images.stored for loader in loaders)
    assert stored is again and stored.pixels.device.type == "meta"
    other = replace(image_set, pixels=image_set.pixels.clone())
    assert resident(other, device="meta").images.stored is not stored
    assert resident(train).images.stored.pixels is image_set.pixels  # on CPU there is no copy
    unused = weakref.ref(stored)
    del loaders, stored, again
    assert unused() is None


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resume_gives_the_remaining_batches(image_set, stop):
    loader = resident(image_set, epoch=2)
    batches = iter(loader)
    for _ in range(stop):
        next(batches)
    resumed = resident(image_set)
    resumed.load_state_dict(loader.state_dict())
    assert_same_batches(resumed, list(resident(image_set, epoch=2))[stop:])


def test_ranks_together_give_the_same_batches(image_set):
    ranks = [resident(image_set, rank=rank, world=3) for rank in range(3)]
    for whole, *parts in zip(resident(image_set), *ranks, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part.images, whole.images[rank::3])
            assert torch.equal(part.indices, whole.indices[rank::3])


def test_does_not_touch_the_global_generator(image_set):
    before = torch.get_rng_state()
    list(resident(image_set))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not _extension.has_native(), reason="the limit is the native kernel's")
@pytest.mark.parametrize("loader", [ResidentLoader, EvalLoader])
def test_too_large_an_image_is_refused_for_a_gpu(monkeypatch, loader):
    """Before anything is sent there; on CPU the crop is refused when it is made."""
    use_gpus(monkeypatch, [(9, 0)])
    use_architectures(monkeypatch, "90a-real")
    sizes = torch.tensor([[4, 4], [9000, 1]], dtype=torch.int32)
    pixels = torch.zeros(3 * 9016, dtype=torch.uint8)
    tall = ImageSet("tall", pixels, image_offsets(sizes), sizes, torch.tensor([0, 1]), ("a", "b"), "0")
    with pytest.raises(
        ValueError, match=r"a crop of 9000x1 is too large to reduce to 28; store smaller images, of at most"
    ):
        loader(tall, SPEC, batch_size=2, device="cuda")
    loader(tall, SPEC, batch_size=2)


@pytest.mark.gpu
@pytest.mark.parametrize("limit_bytes", [None, 0])
@pytest.mark.parametrize("synchronise", [False, True])
def test_gpu_gives_the_batches_of_the_cpu(image_set, limit_bytes, synchronise):
    loader = ResidentLoader(image_set, SPEC, batch_size=BATCH, seed=5, device="cuda", limit_bytes=limit_bytes)
    batches = []
    for batch in loader:
        if synchronise:
            torch.cuda.synchronize()
        batches.append(batch.to("cpu"))
    torch.cuda.synchronize()
    assert_same_batches(batches, resident(image_set), NOISE_ERROR)


@pytest.mark.gpu
def test_gpu_evaluation_equals_cpu(image_set):
    for left, right in zip(
        EvalLoader(image_set, SPEC, batch_size=7, device="cuda"), EvalLoader(image_set, SPEC, batch_size=7), strict=True
    ):
        assert torch.equal(left.images.cpu(), right.images)
