"""TrivialAugment, three-augment, colour jitter and vertical flip against torchvision and timm, bit for bit."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from timm.data.auto_augment import AutoAugment, auto_augment_policy_3a
from torchvision.transforms import ColorJitter, TrivialAugmentWide, autoaugment, functional

from lgfast.ops.augment import augment, augment_plan, eval_plan
from lgfast.ops.random import TRIVIAL_AUGMENT_BLOCK, below, sample_bits
from lgfast.ops.reference.augment_policies import TRIVIAL_AUGMENT, trivial_arguments, trivial_magnitudes
from lgfast.spec.augment import AUGMENT_OPS, INTERPOLATIONS, JITTER_OPS, AugmentSpec
from tests.ops.real_images import pack, small_images

COUNTER = torch.tensor([5, 3])
NUM_DRAWS = 20_000
SMALLEST_P = 1e-4  # seeds are fixed, so a pass is repeatable
THEIRS = TrivialAugmentWide()._augmentation_space(31)  # name -> magnitudes, and whether a sign is drawn
NAMES = list(THEIRS)


def spec_of(**settings):
    return AugmentSpec(image_size=32, teacher_size=0, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), **settings)


def draw(spec, count=NUM_DRAWS):
    """The plan of `count` images of 32x32 pixels, its columns by name."""
    plan = augment_plan(spec, torch.full((count, 2), 32, dtype=torch.int32), torch.arange(count), COUNTER)
    return plan, dict(zip(spec.plan_columns, plan.T.numpy(), strict=True))


def assert_views_are(spec, plan, make):
    """Our bytes are those of make(picture, number) of each image that the plan has flipped."""
    pictures = small_images(len(plan))
    images, _ = augment(*pack(pictures), torch.arange(len(plan)), plan, spec)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (spec.mean, spec.std))
    ours = ((images * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    flips = (plan[:, spec.plan_columns.index("flip")].int() & 1).tolist()
    for number, (picture, flip) in enumerate(zip(pictures, flips, strict=True)):
        start = Image.fromarray(picture[:, ::-1].copy() if flip else picture)
        assert np.array_equal(ours[number], np.asarray(make(start, number))), plan[number].tolist()


def drawn_magnitudes(count):
    """Name and magnitude, with its sign, of torchvision's choice for each image; from the generator's words."""
    op, place, sign, _ = sample_bits(COUNTER, torch.arange(count), TRIVIAL_AUGMENT_BLOCK).unbind(-1)
    names = [NAMES[choice] for choice in below(op, len(NAMES)).tolist()]
    magnitudes = []
    for name, k, negative in zip(names, below(place, 31).tolist(), (sign & 1).tolist(), strict=True):
        values, is_signed = THEIRS[name]
        value = float(trivial_magnitudes(TRIVIAL_AUGMENT[name])[k] if is_signed else values.expand(31)[k])
        magnitudes.append(-value if is_signed and negative else value)
    return names, magnitudes


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_trivial_augment_is_torchvisions(interpolation):
    spec = spec_of(policy="trivial_augment", interpolation=interpolation, erase_prob=0)
    plan, _ = draw(spec, 900)
    names, magnitudes = drawn_magnitudes(len(plan))
    mode = functional.InterpolationMode(interpolation)

    def make(picture, number):
        return autoaugment._apply_op(picture, names[number], magnitudes[number], mode, spec.fill)

    assert_views_are(spec, plan, make)


def test_trivial_magnitudes_are_torchvisions():
    """Which float32 `torch.linspace` gives depends on the processor, by one unit in the last place."""
    assert list(TRIVIAL_AUGMENT) == NAMES
    for name, (values, is_signed) in THEIRS.items():
        if is_signed:
            torch.testing.assert_close(trivial_magnitudes(TRIVIAL_AUGMENT[name]), values, rtol=2e-7, atol=0)
    arguments = dict(zip(NAMES, trivial_arguments()[:, :, 1], strict=True))
    assert torch.equal(arguments["Posterize"], THEIRS["Posterize"][0].double())
    levels = torch.arange(256)
    assert torch.equal(levels < arguments["Solarize"][:, None], levels < THEIRS["Solarize"][0][:, None])


def test_trivial_augment_chooses_evenly():
    columns = draw(spec_of(policy="trivial_augment"))[1]
    ops = np.bincount(columns["op_0"].astype(int) + 1)
    assert len(ops[ops > 0]) == len(NAMES) and stats.chisquare(ops[ops > 0]).pvalue > SMALLEST_P
    angles = columns["arg_0"][columns["op_0"] == AUGMENT_OPS.index("Rotate")]
    values, counts = np.unique(angles, return_counts=True)
    assert np.array_equal(values, np.linspace(-135, 135, 61))
    expected = np.where(values == 0, 2, 1)
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > SMALLEST_P


def test_three_augment_is_timms(monkeypatch):
    spec = spec_of(policy="three_augment", erase_prob=0)
    plan, columns = draw(spec, 300)
    order = {"Solarize": 0, "Color": 1, "GaussianBlur": 2}
    policy = auto_augment_policy_3a({})

    def make(picture, number):
        choice, radius = order[AUGMENT_OPS[int(columns["op_0"][number])]], float(columns["arg_0"][number])
        monkeypatch.setattr("timm.data.auto_augment.random.choice", lambda options: options[choice])
        monkeypatch.setattr("timm.data.auto_augment.random.uniform", lambda low, high: radius)
        return AutoAugment(policy)(picture)

    assert_views_are(spec, plan, make)


def test_three_augment_draws_as_timm():
    columns = draw(spec_of(policy="three_augment"))[1]
    ops, counts = np.unique(columns["op_0"], return_counts=True)
    assert [AUGMENT_OPS[int(op)] for op in ops] == ["Solarize", "Color", "GaussianBlur"]
    assert stats.chisquare(counts).pvalue > SMALLEST_P
    radii = columns["arg_0"][columns["op_0"] == ops[2]]
    assert stats.kstest(radii, stats.uniform(0.1, 1.9).cdf).pvalue > SMALLEST_P


@pytest.mark.parametrize("jitter", [(0.4, 0.4, 0.4, 0.0), (0.0, 1.5, 0.3, 0.5), (0.0, 0.0, 0.0, 0.2)])
def test_color_jitter_is_torchvisions(jitter, monkeypatch):
    spec = spec_of(rand_augment="", color_jitter=jitter, erase_prob=0)
    plan, columns = draw(spec, 300)
    theirs = ColorJitter(*jitter)

    def make(picture, number):
        slots = [(columns[f"op_{k}"][number], columns[f"arg_{k}"][number]) for k in range(spec.num_slots)]
        drawn = {JITTER_OPS.index(AUGMENT_OPS[int(op)]): float(argument) for op, argument in slots}
        order = [*drawn, *(place for place in range(4) if place not in drawn)]
        values = torch.tensor(order), *(drawn.get(place) for place in range(4))
        monkeypatch.setattr(theirs, "get_params", lambda *bounds: values)
        return theirs(picture)

    assert_views_are(spec, plan, make)


def test_color_jitter_draws_as_torchvision():
    columns = draw(spec_of(rand_augment="", color_jitter=(0.4, 1.5, 0.3, 0.5)))[1]
    ops = np.stack([columns[f"op_{k}"] for k in range(4)], axis=1)
    arguments = np.stack([columns[f"arg_{k}"] for k in range(4)], axis=1)
    orders = list(itertools.permutations(AUGMENT_OPS.index(name) for name in JITTER_OPS))
    counts = [int((ops == order).all(axis=1).sum()) for order in orders]
    assert sum(counts) == NUM_DRAWS and stats.chisquare(counts).pvalue > SMALLEST_P
    bounds = {"Brightness": (0.6, 1.4), "Contrast": (0, 2.5), "Color": (0.7, 1.3), "Hue": (-0.5, 0.5)}
    for name, (low, high) in bounds.items():
        drawn = arguments[ops == AUGMENT_OPS.index(name)]
        assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > SMALLEST_P


def test_vertical_flip_is_torchvisions():
    spec = spec_of(rand_augment="", vertical_flip_prob=0.5, erase_prob=0)
    plan, columns = draw(spec, 100)
    flips = draw(spec)[1]["flip"].astype(int)
    chances = flips & 1, flips >> 1
    assert all(abs(chance.mean() - 0.5) < 4 * 0.5 / NUM_DRAWS**0.5 for chance in chances)
    assert abs(np.corrcoef(*chances)[0, 1]) < 4 / NUM_DRAWS**0.5
    assert_views_are(spec, plan, lambda picture, i: functional.vflip(picture) if columns["flip"][i] >= 2 else picture)


@pytest.mark.parametrize("turn", [-0.5, -0.004, 0.21])
def test_hue_of_every_colour_is_pillows(turn):
    """Every red and green beside every fifth blue: 3.3 million colours, a fifth of all."""
    levels = torch.arange(256, dtype=torch.uint8)
    blues = levels[::5]
    cube = torch.stack(torch.meshgrid(levels, levels, blues, indexing="ij"), dim=-1).view(-1, 256, 256, 3).numpy()
    spec = AugmentSpec(image_size=256, teacher_size=0, rand_augment="rand-n1", erase_prob=0)
    stored = pack(list(cube))
    plan = eval_plan(spec, stored[2])
    plan[:, -2], plan[:, -1] = AUGMENT_OPS.index("Hue"), turn
    images, _ = augment(*stored, torch.arange(len(cube)), plan, spec)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (spec.mean, spec.std))
    ours = ((images * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for made, picture in zip(ours, cube, strict=True):
        assert np.array_equal(made, np.asarray(functional.adjust_hue(Image.fromarray(picture), turn)))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 31, 64, 100])
def test_blur_of_every_size_and_radius_is_pillows(size):
    radii = [0.1, 0.3, math.sqrt(0.5), 0.999, math.sqrt(2), 1.415, 1.9, 2.0]
    pictures = np.random.default_rng(size).integers(256, size=(len(radii), size, size, 3), dtype=np.uint8)
    spec = AugmentSpec(image_size=size, teacher_size=0, rand_augment="rand-n1", erase_prob=0)
    stored = pack(list(pictures))
    plan = eval_plan(spec, stored[2])
    plan[:, -2], plan[:, -1] = AUGMENT_OPS.index("GaussianBlur"), torch.tensor(radii, dtype=torch.float64)
    images, _ = augment(*stored, torch.arange(len(radii)), plan, spec)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (spec.mean, spec.std))
    ours = ((images * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for made, picture, radius in zip(ours, pictures, radii, strict=True):
        theirs = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius))
        assert np.array_equal(made, np.asarray(theirs)), radius
