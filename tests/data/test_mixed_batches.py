"""Loaders under mixup and cutmix: the same mixtures for every loader, number of ranks and resume point."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from lgfast.assembly.run import train_run
from lgfast.data import build_train_loader, load_dataset
from lgfast.ops.mix import mix_plan
from lgfast.spec.augment import AugmentSpec
from lgfast.step import Losses, TrainMeter
from tests.runs import metrics, tiny_config

PLAIN = AugmentSpec(image_size=28, teacher_size=4)
MIXED = dataclasses.replace(PLAIN, mixup_alpha=0.8, cutmix_alpha=1.0)
BATCH = 8


@pytest.fixture(scope="module")
def image_set():
    return load_dataset("digits").subset(torch.arange(60))


def batches(image_set, spec=MIXED, kind="resident", batch_size=BATCH, epoch=2, **options):
    loader = build_train_loader(kind, image_set, spec, batch_size, seed=5, **options)
    loader.set_epoch(epoch)
    return loader


def assert_same(got, expected, tolerance=0.0):
    for left, right in zip(got, expected, strict=True):
        assert torch.equal(left.indices, right.indices)
        for name in ("images", "teacher_images", "labels"):
            torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=0, atol=tolerance)


def test_mixture_of_the_plain_batch(image_set):
    """Each image is mixed with the one half a batch on; the teacher sees every seventh pixel of the mixture."""
    plan = mix_plan(MIXED, torch.tensor([5, 2]), torch.arange(7))
    kinds = set()
    for row, mixed, plain in zip(plan, batches(image_set), batches(image_set, PLAIN), strict=True):
        outside, top, left, height, width, label = row.tolist()
        top, left, bottom, right = int(top), int(left), int(top + height), int(left + width)
        order = [(i + BATCH // 2) % BATCH for i in range(BATCH)]
        expected = outside * plain.images.double() + (1 - outside) * plain.images[order].double()
        expected[:, :, top:bottom, left:right] = plain.images[order][:, :, top:bottom, left:right].double()
        torch.testing.assert_close(mixed.images.double(), expected, rtol=0, atol=1e-6)
        assert torch.equal(mixed.teacher_images, mixed.images[..., 3::7, 3::7])
        own, partner = F.one_hot(plain.labels, 10), F.one_hot(plain.labels[order], 10)
        torch.testing.assert_close(mixed.labels, (label * own + (1 - label) * partner).float())
        kinds.add(outside == 1)
    assert kinds == {True, False}  # mixup and cutmix both occur


def test_teachers_input_is_resized_where_no_pixel_is_picked(image_set):
    spec = dataclasses.replace(MIXED, teacher_size=8)
    for batch in batches(image_set, spec):
        resized = F.interpolate(batch.images, size=(8, 8), mode="bilinear", align_corners=False)
        torch.testing.assert_close(batch.teacher_images, resized)


def test_loaders_agree(image_set):
    assert_same(batches(image_set), batches(image_set, kind="timm"), 2e-5)  # erase noise, as without mixing


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_give_the_same_mixtures(image_set, world):
    parts = [batches(image_set, rank=rank, world=world) for rank in range(world)]
    for whole, *shares in zip(batches(image_set), *parts, strict=True):
        for rank, share in enumerate(shares):
            assert torch.equal(share.images, whole.images[rank::world])
            assert torch.equal(share.teacher_images, whole.teacher_images[rank::world])
            assert torch.equal(share.labels, whole.labels[rank::world])


def test_resume_gives_the_remaining_mixtures(image_set):
    loader = batches(image_set)
    running = iter(loader)
    next(running), next(running)
    resumed = batches(image_set, epoch=0)
    resumed.load_state_dict(loader.state_dict())
    assert_same(resumed, list(batches(image_set))[2:])


def test_uneven_shares_are_refused(image_set):
    with pytest.raises(ValueError, match="needs an even share of the batch; got 6 over 2 ranks"):
        batches(image_set, batch_size=6, world=2)


def test_accuracy_counts_the_larger_label(image_set):
    batch = next(iter(batches(image_set)))
    logits, meter = torch.eye(10)[batch.labels.argmax(1)], TrainMeter("cpu")
    logits[0] = torch.eye(10)[(batch.labels[0].argmax() + 1) % 10]  # one of eight is wrong
    loss = F.cross_entropy(logits, batch.labels)
    meter.update(Losses(loss, loss), logits, batch.labels)
    assert meter.read(TrainMeter.WINDOW)["train_top1"] == 100 * 7 / 8


def test_a_run_trains_on_mixed_batches(tmp_path):
    changes = {
        "max_steps": 2,
        "log.every_steps": 1,
        "augment.mixup_alpha": 0.8,
        "augment.cutmix_alpha": 1.0,
        "optim.label_smoothing": 0.1,
    }
    config = tiny_config(tmp_path, **changes)
    train_run(config)
    off = dict.fromkeys(("augment.mixup_alpha", "augment.cutmix_alpha", "optim.label_smoothing"), 0)
    plain = tiny_config(tmp_path, **changes | off, run_dir=str(tmp_path / "plain"))
    train_run(plain)
    ours, theirs = metrics(config.run_dir), metrics(plain.run_dir)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert ours[0]["guidance_loss"] != theirs[0]["guidance_loss"]  # from the first step on
    assert ours[1]["cls_loss"] != theirs[1]["cls_loss"]  # the head begins at zero
