"""Each marginal of the plan against 100,000 draws of timm's own samplers, with fixed seeds on both sides."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation

from lgfast.ops.augment import augment_plan  # equals the reference: test_augment.py
from lgfast.spec.augment import RAND_AUGMENT_OPS, AugmentSpec

NUM_DRAWS = 100_000
SMALLEST_P = 1e-4  # per test; some 60 tests in this file, seeds fixed, so a pass is repeatable
SIGNED = {"Rotate", "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"}


def draw(spec, height=32, width=32, seed=1, epoch=0):
    sizes = torch.tensor([[height, width]], dtype=torch.int32).repeat(NUM_DRAWS, 1)
    plan = augment_plan(spec, sizes, torch.arange(NUM_DRAWS), torch.tensor([seed, epoch]))
    return dict(zip(spec.plan_columns, plan.T.numpy(), strict=True))


def assert_same_discrete(ours, theirs):
    """Chi-square of two samples; values with fewer than ten occurrences in all are put together."""
    values, found = np.unique(np.concatenate([ours, theirs]), return_inverse=True)
    counts = np.stack([np.bincount(part, minlength=len(values)) for part in np.split(found, [len(ours)])])
    is_rare = counts.sum(0) < 10
    table = np.hstack([counts[:, ~is_rare], counts[:, is_rare].sum(1, keepdims=True)])
    table = table[:, table.sum(0) > 0]
    if table.shape[1] > 1:
        assert stats.chi2_contingency(table).pvalue > SMALLEST_P


def assert_same_continuous(ours, theirs):
    assert stats.ks_2samp(ours, theirs).pvalue > SMALLEST_P


class Recorder:
    """Stands in for an image tensor and keeps the rectangle that timm erases."""

    def __init__(self):
        self.box = (0, 0, 0, 0)

    def __setitem__(self, key, value):
        _, rows, columns = key
        self.box = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(32, 32, (0.08, 1.0)), (8, 40, (0.08, 1.0)), (40, 8, (0.9, 1.0)), (30, 36, (0.95, 1.0))],
    ids=["square", "wide", "tall, mostly fallback", "many tries"],
)
def test_crop_matches_timm(height, width, scale):
    random.seed(0)
    image = Image.new("RGB", (width, height))
    sampler = RandomResizedCropAndInterpolation.get_params
    theirs = np.array([sampler(image, scale, (3 / 4, 4 / 3)) for _ in range(NUM_DRAWS)])
    ours = draw(AugmentSpec(crop_scale=scale), height, width)
    for column, name in enumerate(("crop_top", "crop_left", "crop_height", "crop_width")):
        assert_same_discrete(ours[name], theirs[:, column])
    assert_same_discrete(ours["crop_height"] * 1000 + ours["crop_width"], theirs[:, 2] * 1000 + theirs[:, 3])
    assert (ours["crop_top"] + ours["crop_height"]).max() <= height
    assert (ours["crop_left"] + ours["crop_width"]).max() <= width


@pytest.mark.parametrize("size", [224, 32])
def test_erase_matches_timm(size, monkeypatch):
    monkeypatch.setattr("timm.data.random_erasing._get_pixels", lambda *arguments, **options: None)
    random.seed(0)
    sampler, theirs = RandomErasing(probability=0.25), []
    for _ in range(NUM_DRAWS):
        recorder = Recorder()
        sampler._erase(recorder, 3, size, size, torch.float32)
        theirs.append(recorder.box)
    theirs = np.array(theirs)
    ours = draw(AugmentSpec(image_size=size))
    boxes = np.stack([ours[f"erase_{name}"] for name in ("top", "left", "height", "width")], axis=1)
    assert_same_discrete(boxes[:, 2] > 0, theirs[:, 2] > 0)
    ours_erased, theirs_erased = boxes[boxes[:, 2] > 0], theirs[theirs[:, 2] > 0]
    for column in range(4):
        assert_same_discrete(ours_erased[:, column], theirs_erased[:, column])
    for feature in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 2] / box[:, 3]):
        assert_same_continuous(feature(ours_erased), feature(theirs_erased))


def timm_operations(text, num_draws):
    """(op, argument) of every slot of num_draws images, as timm draws them; op -1 where it is skipped."""
    random.seed(0)
    np.random.seed(0)
    transform, taken = rand_augment_transform(text), []
    for number, op in enumerate(transform.ops):
        op.aug_fn = lambda image, *arguments, number=number, **options: [*image, (number, *arguments)]
    for _ in range(num_draws):
        chosen = np.random.choice(transform.ops, transform.num_layers)
        for op in chosen:
            record = op([])
            taken.append((*record[0], 0.0)[:2] if record else (-1, 0.0))
    return np.array(taken).reshape(num_draws, transform.num_layers, 2)


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m6-n3-mstd2", "rand-m9-mstd101-inc1-p0.8"])
def test_operations_match_timm(text):
    theirs = timm_operations(text, NUM_DRAWS)
    ours = draw(AugmentSpec(rand_augment=text))
    num_slots = theirs.shape[1]
    for slot in range(num_slots):
        assert_same_discrete(ours[f"op_{slot}"], theirs[:, slot, 0])
    pairs = [ours["op_0"] * 20 + ours["op_1"], theirs[:, 0, 0] * 20 + theirs[:, 1, 0]]
    assert_same_discrete(*pairs)  # the slots are independent, and draw with replacement
    our_ops = np.concatenate([ours[f"op_{slot}"] for slot in range(num_slots)])
    our_arguments = np.concatenate([ours[f"arg_{slot}"] for slot in range(num_slots)])
    for number, name in enumerate(RAND_AUGMENT_OPS):
        mine, timms = our_arguments[our_ops == number], theirs[..., 1][theirs[..., 0] == number]
        if name in ("Posterize", "Solarize", "SolarizeAdd"):
            assert_same_discrete(mine, timms)
        elif name in SIGNED:
            assert_same_discrete(mine > (mine.max() + mine.min()) / 2, timms > (timms.max() + timms.min()) / 2)
            assert_same_continuous(mine, timms)
        else:
            assert not mine.any()


def test_flip_is_a_fair_coin_independent_of_the_crop():
    ours = draw(AugmentSpec())
    assert abs(ours["flip"].mean() - 0.5) < 4 * 0.5 / NUM_DRAWS**0.5
    assert abs(np.corrcoef(ours["flip"], ours["crop_left"])[0, 1]) < 4 / NUM_DRAWS**0.5


def test_columns_are_uncorrelated_between_epochs_and_neighbours():
    first, second = draw(AugmentSpec(), epoch=0), draw(AugmentSpec(), epoch=1)
    for name in ("crop_top", "crop_height", "flip", "erase_height", "op_0", "arg_1"):
        assert abs(np.corrcoef(first[name], second[name])[0, 1]) < 4.5 / NUM_DRAWS**0.5
        assert abs(np.corrcoef(first[name][1:], first[name][:-1])[0, 1]) < 4.5 / NUM_DRAWS**0.5


def test_weak_variant_is_a_uniform_shift_of_the_whole_image():
    ours = draw(AugmentSpec(weak=True, image_size=32), height=20, width=30)
    assert set(ours["crop_height"]) == {20} and set(ours["crop_width"]) == {30} and not ours["erase_height"].any()
    for name in ("shift_y", "shift_x"):
        values, counts = np.unique(ours[name], return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert stats.chisquare(counts).pvalue > SMALLEST_P
