"""augment against Pillow and timm on real pictures: equal bytes before normalisation, for every operation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG

from lgfast.ops.augment import augment, augment_plan, eval_plan
from lgfast.ops.reference.augment import view_of
from lgfast.spec.augment import AUGMENT_OPS, INTERPOLATIONS, RAND_AUGMENT_OPS, AugmentSpec
from tests.ops.real_images import pack, photographs, small_images

NUM_IMAGES = 1000  # 45 for each magnitude
MAGNITUDES = [*range(11), *(step + 0.5 for step in range(10)), 8.97, 9.03]  # 22, whole and fractional
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")  # the others never resample
SIGNED = {"Rotate", "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"}


@pytest.fixture(scope="module")
def pictures():
    return small_images(NUM_IMAGES)


def as_bytes(images, spec):
    """Undo the normalisation: uint8 (B, S, S, 3). Exact: the values are 1 / 255 apart before rounding."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (spec.mean, spec.std))
    return ((images.float() * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def pillow_bytes(images, plan, spec):
    rows = [dict(zip(spec.plan_columns, row, strict=True)) for row in plan.tolist()]
    views = [view_of(Image.fromarray(image), row, spec) for image, row in zip(images, rows, strict=True)]
    return np.stack([np.asarray(view) for view in views])


def assert_equals_pillow(images, plan, spec):
    pixels, offsets, sizes = pack(images)
    ours = as_bytes(augment(pixels, offsets, sizes, torch.arange(len(images)), plan, spec)[0], spec)
    theirs = pillow_bytes(images, plan, spec)
    differing = (ours != theirs).any(axis=(1, 2, 3)).nonzero()[0]
    assert len(differing) == 0, f"{len(differing)} images differ, first plan {plan[differing[0]].tolist()}"


def timm_argument(name, magnitude):
    """timm's increasing argument at a magnitude, before the sign is drawn."""
    timm_name = next(full for full in (f"{name}Increasing", f"{name}Rel", name) if full in LEVEL_TO_ARG)
    level_to_argument = LEVEL_TO_ARG[timm_name]
    return 0.0 if level_to_argument is None else float(level_to_argument(magnitude, {})[0])


@pytest.mark.parametrize(
    ("name", "interpolation"),
    [(name, way) for name in RAND_AUGMENT_OPS for way in INTERPOLATIONS if name in GEOMETRIC or way != "nearest"],
)
def test_operation_equals_pillow_at_every_magnitude(pictures, name, interpolation, monkeypatch):
    if name not in GEOMETRIC and interpolation != "bicubic":
        interpolation = "bicubic"  # other pictures instead
        pictures = pictures[:, ::-1, ::-1]
    spec = AugmentSpec(image_size=32, teacher_size=0, interpolation=interpolation, rand_augment="rand-n1")
    plan = eval_plan(spec, torch.full((NUM_IMAGES, 2), 32))
    plan[:, -2] = RAND_AUGMENT_OPS.index(name)
    signs = iter(np.random.default_rng(0).random(4 * NUM_IMAGES))
    monkeypatch.setattr("timm.data.auto_augment.random.random", lambda: next(signs))
    plan[:, -1] = torch.tensor([timm_argument(name, MAGNITUDES[i % len(MAGNITUDES)]) for i in range(NUM_IMAGES)])
    assert_equals_pillow(np.ascontiguousarray(pictures), plan, spec)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_random_views_equal_pillow(pictures, interpolation):
    spec = AugmentSpec(image_size=32, teacher_size=0, interpolation=interpolation, erase_prob=0)
    sizes = torch.full((NUM_IMAGES, 2), 32, dtype=torch.int32)
    plan = augment_plan(spec, sizes, torch.arange(NUM_IMAGES), torch.tensor([3, 1]))
    assert_equals_pillow(pictures, plan, spec)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 96),
        ({"interpolation": "bilinear"}, 48),
        ({"rand_augment": "rand-m12-mmax20-mstd4-n4-p0.9-inc1", "image_size": 100}, 96),
        ({"rand_augment": "rand-m6-mstd101-n3", "image_size": 49}, 96),
        ({"weak": True, "image_size": 65}, 96),
    ],
    ids=["recipe at 224", "bilinear at 224", "strong at 100", "not increasing at 49", "weak at 65"],
)
def test_enlarged_views_equal_pillow(pictures, arguments, count):
    spec = AugmentSpec(teacher_size=0, erase_prob=0, **arguments)
    sizes = torch.full((count, 2), 32, dtype=torch.int32)
    plan = augment_plan(spec, sizes, torch.arange(count), torch.tensor([5, 2]))
    assert_equals_pillow(pictures[:count], plan, spec)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("image_size", [16, 32, 224])
def test_crops_of_large_ragged_photographs_equal_pillow(interpolation, image_size):
    photos = photographs()
    images = [photos[0], photos[1][:50], photos[0][:, 300:333], photos[1][::-1, 5:400], np.tile(photos[0], (3, 2, 1))]
    spec = AugmentSpec(image_size=image_size, teacher_size=0, interpolation=interpolation, erase_prob=0)
    sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int32)
    for epoch in range(3):
        plan = augment_plan(spec, sizes, torch.arange(len(images)), torch.tensor([0, epoch]))
        assert_equals_pillow(images, plan, spec)
    assert_equals_pillow(images, eval_plan(spec, sizes), spec)


def test_evaluation_view_equals_pillows_bilinear_squash():
    photos = photographs()
    spec = AugmentSpec(image_size=224, teacher_size=0).for_evaluation()
    pixels, offsets, sizes = pack(photos)
    images, _ = augment(pixels, offsets, sizes, torch.arange(2), eval_plan(spec, sizes), spec)
    for image, photo in zip(as_bytes(images, spec), photos, strict=True):
        squash = Image.fromarray(photo).resize((224, 224), Image.Resampling.BILINEAR)  # wider than tall: rows first
        assert np.array_equal(image, np.asarray(squash))


@st.composite
def cases(draw):
    """An image size, a crop at or near the edges, a shift, two operations with arguments at the ends of their range."""
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    crop_height, crop_width = draw(st.integers(1, height)), draw(st.integers(1, width))
    size = draw(st.sampled_from([1, 2, 3, 5, 16, 31, 33, 48]))
    spec = AugmentSpec(
        image_size=size, teacher_size=0, interpolation=draw(st.sampled_from(INTERPOLATIONS)), mean=(0.3, 0.5, 0.9)
    )
    plan = eval_plan(spec, torch.tensor([[height, width]]))
    values = {
        "crop_top": draw(st.sampled_from([0, height - crop_height])),
        "crop_left": draw(st.sampled_from([0, width - crop_width])),
        "crop_height": crop_height,
        "crop_width": crop_width,
        "shift_y": draw(st.integers(-size, size)) if draw(st.booleans()) else 0,
        "shift_x": draw(st.integers(-size, size)) if draw(st.booleans()) else 0,
        "flip": draw(st.integers(0, 3)),
    }
    bounds = {"Posterize": (-3, 8), "Solarize": (0, 256), "SolarizeAdd": (0, 128), "Rotate": (-90, 90)}
    bounds |= {"TranslateXPixels": (-9, 9), "TranslateYPixels": (-9, 9), "GaussianBlur": (0.1, 2.0), "Hue": (-0.5, 0.5)}
    for slot in range(2):
        op = draw(st.integers(-1, len(AUGMENT_OPS) - 1))
        name = AUGMENT_OPS[op] if op >= 0 else ""
        low, high = bounds.get(name, (0.1, 2.9) if name in SIGNED and len(name) > 6 and "e" in name else (-1.2, 1.2))
        argument = draw(st.sampled_from([low, high, (low + high) / 2]) | st.floats(low, high))
        if name in ("Posterize", "Solarize", "SolarizeAdd", "TranslateXPixels", "TranslateYPixels"):
            argument = int(argument)
        values[f"op_{slot}"], values[f"arg_{slot}"] = op, argument
    for name, value in values.items():
        plan[0, spec.plan_columns.index(name)] = value
    return height, width, plan, spec


@settings(max_examples=400, deadline=None, derandomize=True)
@given(case=cases(), seed=st.integers(0, 2**16))
def test_edges_equal_pillow(case, seed):
    height, width, plan, spec = case
    photo = photographs()[seed % 2]
    top, left = seed % (427 - height), seed % (640 - width)
    assert_equals_pillow([photo[top : top + height, left : left + width]], plan, spec)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_images_survive_every_operation(value):
    flat = np.full((12, 12, 3), value, dtype=np.uint8)
    spec = AugmentSpec(image_size=20, teacher_size=0, rand_augment="rand-n1")
    plan = eval_plan(spec, torch.full((15, 2), 12))
    plan[:, -2] = torch.arange(15)
    plan[:, -1] = torch.tensor([timm_argument(name, 9) for name in RAND_AUGMENT_OPS])
    assert_equals_pillow([flat] * 15, plan, spec)
