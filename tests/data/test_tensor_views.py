"""Views of images of any channels and depth, against Pillow's own in float and timm's own in 8 bits."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata

from lgfast.data.any_images import AnyImages
from lgfast.data.image_set import image_set_from_images
from lgfast.data.tensor_ops import apply_op, grey
from lgfast.data.tensor_views import erase_noise, make_views
from lgfast.ops.augment import augment_plan
from lgfast.ops.reference import augment as reference
from lgfast.spec.augment import AUGMENT_OPS, AugmentSpec

RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}
SIZE = 20


def scene(seed, height=31, width=43):
    """Values up to 65535 with edges and slopes."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x / generator.uniform(2, 6) + generator.uniform(0, 6)) + np.cos(y / generator.uniform(2, 6))
    return np.clip(32768 + 12000 * waves + 9000 * (x > y) + generator.normal(0, 500, waves.shape), 0, 65535).round()


def spec_of(channels=1, value_range=(0.0, 65535.0), **changes):
    quiet = {"rand_augment": "", "erase_prob": 0.0, "teacher_size": 0, "image_size": SIZE}
    numbers = {"mean": (0.3,) * channels, "std": (0.5,) * channels, "value_range": value_range}
    return AugmentSpec(**quiet | numbers | changes)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_a_crop_is_pillows_resize_in_float(interpolation):
    bands = [scene(seed) for seed in range(5)]
    spec = spec_of(5, interpolation=interpolation)
    plan = augment_plan(spec, torch.tensor([[31, 43]] * 6, dtype=torch.int32), torch.arange(6), torch.tensor([4, 1]))
    views, _ = make_views([torch.from_numpy(np.stack(bands, 2)).to(torch.int32)] * 6, plan, spec)
    columns = dict(zip(spec.plan_columns, plan.long().unbind(1), strict=True))
    assert len(set(columns["flip"].tolist())) == 2
    for row, view in enumerate(views):
        top, left, height, width = (int(columns[f"crop_{name}"][row]) for name in ("top", "left", "height", "width"))
        for band, channel in zip(bands, view, strict=True):
            picture = Image.fromarray(band.astype(np.float32)).crop((left, top, left + width, top + height))
            expected = np.asarray(picture.resize((SIZE, SIZE), RESAMPLE[interpolation])) / 65535
            if columns["flip"][row]:
                expected = expected[:, ::-1]
            assert np.abs((channel * 0.5 + 0.3).numpy() - expected).max() < 2e-6


def in_eight_bits(channels, name, argument, spec):
    """(the operation on two images here, timm's on them), values 0 to 255."""
    planes = np.stack([(scene(seed, SIZE, SIZE) / 257).round() for seed in range(3)], 2).astype(np.uint8)
    planes[:3] //= 4
    picture = Image.fromarray(planes if channels == 3 else planes[..., 0])
    expected = np.asarray(reference.apply_op(picture.convert("RGB"), name, argument, spec), np.float64)
    images = torch.from_numpy(planes[..., :channels]).permute(2, 0, 1).float()[None] / 255
    found = apply_op(images.repeat(2, 1, 1, 1), name, torch.tensor([argument] * 2, dtype=torch.float64), spec)
    assert torch.equal(found[0], found[1])
    return found[0].permute(1, 2, 0).numpy() * 255, expected[..., :channels]


CASES = [
    ("AutoContrast", 0.0), ("Invert", 0.0), ("Rotate", 17.0), ("Rotate", -63.0), ("Posterize", 3.0),
    ("Posterize", 0.0), ("Posterize", 8.0), ("Solarize", 100.0), ("Solarize", 256.0),
    ("SolarizeAdd", 40.0), ("Color", 0.3), ("Color", 1.7),
    ("Contrast", 0.4), ("Contrast", 1.6), ("Brightness", 0.7), ("Brightness", 1.4), ("Sharpness", 0.2),
    ("Sharpness", 1.8), ("ShearX", 0.21), ("ShearY", -0.3), ("TranslateX", 0.2), ("TranslateY", -0.33),
    ("TranslateXPixels", 3.0), ("TranslateYPixels", -4.0), ("GaussianBlur", 1.3),
]  # fmt: skip


# Where timm rounds in between, and where it blurs by three box filters, which are no Gaussian.
LIMITS = {"Color": 2.01, "Contrast": 2.01, "Sharpness": 2.01, "GaussianBlur": 6.0}


def test_every_operation_is_tried():
    assert {name for name, _ in CASES} == set(AUGMENT_OPS) - {"Equalize", "Hue"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "argument"), CASES)
def test_an_operation_is_timms_to_the_rounding_of_eight_bits(channels, name, argument):
    is_filtered = "Shear" in name or name == "Rotate"
    for interpolation in ("nearest", "bilinear", "bicubic") if is_filtered else ("bicubic",):
        found, expected = in_eight_bits(channels, name, argument, spec_of(3, interpolation=interpolation))
        error = np.abs(found.clip(0, 255) - expected).max()
        assert error < LIMITS.get(name, 1.01), interpolation


@pytest.mark.parametrize("channels", [1, 4])
def test_equalize_gives_ranks(channels):
    """Against SciPy's; Pillow rounds the step of its table, by much where images are small."""
    images = torch.from_numpy(
        np.stack([scene(seed, SIZE, SIZE).clip(20000, 45000) for seed in range(channels)])
    ).float()
    found = apply_op(images[None] / 65535, "Equalize", torch.zeros(1), spec_of(channels))[0]
    for before, after in zip(images.numpy(), found.numpy(), strict=True):
        is_largest = before == before.max()
        ranks = rankdata(before, method="min").reshape(before.shape) - 1
        assert is_largest.sum() > 1 and np.allclose(after, ranks / (~is_largest).sum(), atol=1e-6)
    flat = torch.full((1, channels, 4, 4), 0.25)
    assert torch.equal(apply_op(flat, "Equalize", torch.zeros(1), spec_of(channels)), flat)


def test_what_a_colour_is_without_red_green_and_blue():
    images = torch.rand(2, 5, 4, 4)
    assert torch.equal(grey(images), images.mean(1, keepdim=True))
    faded = apply_op(images, "Color", torch.tensor([0.0, 0.5]), spec_of(5))
    assert torch.allclose(faded[0], images[0].mean(0).expand(5, 4, 4)) and not torch.allclose(faded[1], images[1])


def test_erased_rectangles_and_the_teachers_input_are_those_of_the_reference():
    """A grey image in three channels gives the views of RGB, up to the rounding of 8 bits between resize and filter."""
    pixels = np.repeat((scene(1) / 257).round().astype(np.uint8)[..., None], 3, 2)
    for mode in ("const", "rand", "pixel"):
        spec = AugmentSpec(image_size=SIZE, teacher_size=SIZE // 5, rand_augment="", erase_prob=1.0, erase_mode=mode)
        plan = augment_plan(
            spec, torch.tensor([[31, 43]] * 4, dtype=torch.int32), torch.arange(4), torch.tensor([5, 2])
        )
        views, teacher_views = make_views([torch.from_numpy(pixels)] * 4, plan, spec)
        for row, view, small in zip(plan, views, teacher_views, strict=True):
            expected, expected_small = reference.apply_plan(Image.fromarray(pixels), row.tolist(), spec)
            assert (view - expected).abs().max() < 1.01 / 255 / min(spec.std)
            assert torch.equal(small, view[:, 2::5, 2::5]) and small.shape == expected_small.shape


def test_the_noise_of_many_channels_is_normal_and_independent():
    keys = torch.tensor([[7, 9], [8, 1]])
    noise = erase_noise(keys, [4000, 5], 9, torch.device("cpu"))
    noise, rest = noise.split([4000, 5])
    assert torch.equal(noise[:, :3], reference.erase_noise(keys[0], 4000))
    assert torch.equal(rest[:, :3], reference.erase_noise(keys[1], 5))
    assert noise.mean(0).abs().max() < 5 / 4000**0.5
    assert (torch.corrcoef(noise.T) - torch.eye(9)).abs().max() < 5 / 4000**0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("limit_bytes", [None, 0], ids=["kept there", "sent"])
def test_views_on_a_gpu_are_those_of_the_cpu(limit_bytes):
    arrays = [np.stack([scene(seed + i) for seed in range(5)], 2).astype(np.uint16) for i in range(16)]
    spec = spec_of(5, teacher_size=4, rand_augment="rand-m9-n3-mstd0.5-inc1-p1", erase_prob=1.0)
    image_set, indices, counter = image_set_from_images("scenes", arrays), torch.arange(16), torch.tensor([3, 1])
    expected, found = (
        AnyImages(image_set, torch.device(device), limit_bytes).make(indices, counter, spec, torch.float32)
        for device in ("cpu", "cuda")
    )
    assert found.images.device.type == "cuda"
    differs = (found.images.cpu() - expected.images).abs() > 1e-3  # near a threshold, or where two ranks change places
    assert differs.float().mean() < 0.02
    assert torch.equal(found.teacher_images, found.images[:, :, 2::5, 2::5])
