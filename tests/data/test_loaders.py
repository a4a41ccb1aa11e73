"""The loader contract: order, views, sharding, resume. Each property is compared with a direct composition."""

import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

from lgfast.data import EvalLoader, build_train_loader, epoch_permutation, load_dataset
from lgfast.data.image_set import image_set_from_arrays
from lgfast.data.pillow_augment import augment_sample
from lgfast.spec.augment import AugmentSpec

SPEC = AugmentSpec(image_size=28, teacher_size=4)
NUM_IMAGES, BATCH = 23, 6


@pytest.fixture(scope="module")
def image_set():
    return load_dataset("digits").subset(torch.arange(NUM_IMAGES))


def train_loader(image_set, spec=SPEC, batch_size=BATCH, **kwargs):
    return build_train_loader("timm", image_set, spec, batch_size, **({"seed": 5} | kwargs))


def assert_same_batches(got, expected):
    got, expected = list(got), list(expected)
    assert len(got) == len(expected)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(tuple(left), tuple(right), rtol=0, atol=0)


def test_batches_follow_the_permutation_and_the_plan(image_set):
    loader = train_loader(image_set)
    loader.set_epoch(3)
    order = epoch_permutation(NUM_IMAGES, seed=5, epoch=3)
    batches = list(loader)
    assert len(batches) == len(loader) == NUM_IMAGES // BATCH
    for step, batch in enumerate(batches):
        assert torch.equal(batch.indices, order[step * BATCH : (step + 1) * BATCH])
        assert torch.equal(batch.labels, image_set.labels[batch.indices])
        for place, index in enumerate(batch.indices.tolist()):
            view, teacher_view = augment_sample(image_set.image(index), SPEC, index, 5, 3)
            assert torch.equal(batch.images[place], view)
            assert torch.equal(batch.teacher_images[place], teacher_view)


@pytest.mark.parametrize("kind", ["timm", "resident"])
def test_order_and_views_do_not_depend_on_the_batch_size(image_set, kind):
    one, two = (build_train_loader(kind, image_set, SPEC, size, seed=5) for size in (4, 10))
    joined = [
        torch.cat([getattr(batch, name) for batch in loader]) for loader in (one, two) for name in ("images", "indices")
    ]
    assert torch.equal(joined[0], joined[2])
    assert torch.equal(joined[1], joined[3])


@pytest.mark.parametrize("kind", ["timm", "resident"])
def test_views_recur_while_the_order_does_not(image_set, kind):
    recurring = build_train_loader(kind, image_set, SPEC, BATCH, seed=5, num_views=2)
    endless = build_train_loader(kind, image_set, SPEC, NUM_IMAGES, seed=5)

    def views(loader, epoch):
        loader.set_epoch(epoch)
        return {int(index): image for batch in loader for index, image in zip(batch.indices, batch.images, strict=True)}

    for epoch in range(4):
        expected = views(endless, epoch % 2)
        found = views(recurring, epoch)
        assert all(torch.equal(image, expected[index]) for index, image in found.items())
        assert list(found) == epoch_permutation(NUM_IMAGES, seed=5, epoch=epoch)[: len(found)].tolist()


@pytest.mark.parametrize(("kind", "workers"), [("timm", 0), ("timm", 1), ("resident", 0)])
def test_images_stay_the_same_without_the_teachers(image_set, kind, workers):
    loader, untouched = (build_train_loader(kind, image_set, SPEC, BATCH, seed=5, workers=workers) for _ in range(2))
    assert all(batch.teacher_images is not None for batch in loader)
    loader.drop_teacher_images()
    for each in (loader, untouched):
        each.set_epoch(1)
    assert_same_batches(loader, (batch._replace(teacher_images=None) for batch in untouched))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(image_set, workers):
    alone, pooled = train_loader(image_set), train_loader(image_set, workers=workers)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        pooled.set_epoch(epoch)
        assert_same_batches(pooled, alone)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_give_the_same_batches(image_set, world):
    ranks = [train_loader(image_set, rank=rank, world=world) for rank in range(world)]
    for whole, *parts in zip(train_loader(image_set), *ranks, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part.images, whole.images[rank::world])
            assert torch.equal(part.labels, whole.labels[rank::world])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_resume_gives_the_remaining_batches(image_set, stop, workers):
    loader = train_loader(image_set, workers=workers)
    loader.set_epoch(2)
    batches = iter(loader)
    for _ in range(stop):
        next(batches)
    state = loader.state_dict()
    expected = list(train_loader_at(image_set, epoch=2))[stop:]

    resumed = train_loader(image_set)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    resumed.set_epoch(2)
    assert_same_batches(resumed, expected)
    assert_same_batches(resumed, train_loader_at(image_set, epoch=2))  # the next pass is whole again


def train_loader_at(image_set, epoch):
    loader = train_loader(image_set)
    loader.set_epoch(epoch)
    return loader


def test_abandoned_pass_does_not_leak_into_the_next(image_set):
    loader = train_loader(image_set, workers=1)
    next(iter(loader))
    loader.set_epoch(1)
    assert_same_batches(loader, train_loader_at(image_set, epoch=1))


def test_workers_end_with_their_loader(image_set):
    loader = train_loader(image_set, workers=2)
    list(loader)
    assert len(multiprocessing.active_children()) >= 2
    running = set(multiprocessing.active_children())
    del loader  # no reference cycle keeps it, so no garbage collection is needed
    assert not running & set(multiprocessing.active_children())


def test_another_epoch_discards_the_loaded_position(image_set):
    loader = train_loader(image_set)
    loader.load_state_dict({"epoch": 0, "position": 2, "batch_size": BATCH, "seed": 5})
    loader.set_epoch(1)
    assert len(list(loader)) == len(loader)


@pytest.mark.parametrize(
    ("change", "message"), [({"batch_size": 3}, "batch_size must be 6"), ({"seed": 0}, "seed must be 5")]
)
def test_state_of_another_order_is_refused(image_set, change, message):
    with pytest.raises(ValueError, match=message):
        train_loader(image_set, **change).load_state_dict(train_loader(image_set).state_dict())


def test_loading_does_not_touch_the_global_generators(image_set):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(train_loader(image_set, workers=1))
    list(EvalLoader(image_set, SPEC, workers=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_no_teacher_and_other_dtypes(image_set):
    spec = AugmentSpec(image_size=16, teacher_size=0)
    batch = next(iter(train_loader(image_set, spec, dtype=torch.bfloat16)))
    assert batch.teacher_images is None
    assert batch.images.dtype == torch.bfloat16
    assert torch.equal(batch.images, next(iter(train_loader(image_set, spec))).images.bfloat16())


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_every_image_once_squashed_by_pillow(workers):
    rng = np.random.default_rng(0)
    image_set = image_set_from_arrays(
        "random", rng.integers(0, 256, (7, 9, 13, 3), dtype=np.uint8), range(7), "abcdefg"
    )
    loader = EvalLoader(image_set, SPEC, batch_size=3, workers=workers)
    mean, std = torch.tensor(SPEC.mean), torch.tensor(SPEC.std)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch.images) for batch in batches] == [3, 3, 1]
        assert len(loader) == 3
        assert torch.cat([batch.labels for batch in batches]).tolist() == list(range(7))
        assert all(batch.teacher_images is None for batch in batches)
        for index, view in enumerate(torch.cat([batch.images for batch in batches])):
            squashed = Image.fromarray(image_set.image(index)).resize((28, 28), Image.Resampling.BILINEAR)
            expected = (torch.from_numpy(np.array(squashed)).float() / 255 - mean) / std
            torch.testing.assert_close(view, expected.permute(2, 0, 1), rtol=0, atol=1e-6)


def test_evaluation_ranks_share_the_images_without_padding(image_set):
    parts = [EvalLoader(image_set, SPEC, batch_size=4, rank=rank, world=3) for rank in range(3)]
    indices = [torch.cat([batch.indices for batch in part]) for part in parts]
    assert [part.tolist() for part in indices] == [list(range(rank, NUM_IMAGES, 3)) for rank in range(3)]


def test_rejects_unknown_kind_and_uneven_shards(image_set):
    with pytest.raises(ValueError, match=r"loader: must be one of .*timm.*got 'fast'"):
        build_train_loader("fast", image_set, SPEC, BATCH)
    with pytest.raises(ValueError, match="batch_size: must be a positive multiple of the 4 ranks, got 6"):
        train_loader(image_set, world=4)
    with pytest.raises(ValueError, match=r"rank: must lie in \[0, 2\), got 2"):
        train_loader(image_set, rank=2, world=2)
    with pytest.raises(ValueError, match="batch_size: must be at least 1, got 0"):
        EvalLoader(image_set, SPEC, batch_size=0)
