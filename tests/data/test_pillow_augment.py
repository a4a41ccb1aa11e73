"""The Pillow oracle against timm's and torchvision's own pipelines, on real photographs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP
from timm.data.transforms import MaybeToTensor
from torchvision import transforms
from torchvision.transforms import functional

from lgfast.data.pillow_augment import augment_image, augment_sample
from lgfast.ops.reference.augment import erase_noise
from lgfast.ops.reference.augment_plan import eval_plan
from lgfast.ops.teacher_input import teacher_input
from lgfast.spec.augment import RAND_AUGMENT_OPS, AugmentSpec


@pytest.fixture(scope="module")
def photo():
    return np.ascontiguousarray(load_sample_images().images[0][100:180, 200:300])


def neutral_row(spec, photo, **values):
    """The plan row of the whole image, with the given columns set."""
    row = eval_plan(spec, torch.tensor([photo.shape[:2]]))[0]
    for name, value in values.items():
        row[spec.plan_columns.index(name)] = value
    return row


def timms_tail(picture, spec):
    return transforms.Compose([MaybeToTensor(), transforms.Normalize(mean=spec.mean, std=spec.std)])(picture)


def test_crop_and_flip_match_torchvision(photo):
    spec = AugmentSpec(image_size=48, teacher_size=0)
    row = neutral_row(spec, photo, crop_top=5, crop_left=11, crop_height=40, crop_width=37, flip=1)
    picture = functional.resized_crop(
        Image.fromarray(photo), 5, 11, 40, 37, [48, 48], functional.InterpolationMode.BICUBIC
    )
    expected = timms_tail(functional.hflip(picture), spec)
    assert torch.equal(augment_image(photo, row, spec)[0], expected)


@pytest.mark.parametrize("name", RAND_AUGMENT_OPS)
def test_operation_matches_timms_increasing_one(photo, name):
    spec = AugmentSpec(image_size=48, teacher_size=0)
    timm_name = next(full for full in (f"{name}Increasing", f"{name}Rel", name) if full in NAME_TO_OP)
    level_to_argument = LEVEL_TO_ARG[timm_name]
    arguments = level_to_argument(8.7, {}) if level_to_argument else ()
    op = RAND_AUGMENT_OPS.index(name)
    row = neutral_row(spec, photo, op_1=op, arg_1=arguments[0] if arguments else 0)
    picture = Image.fromarray(photo).resize((48, 48), Image.Resampling.BICUBIC)
    changed = NAME_TO_OP[timm_name](picture, *arguments, fillcolor=spec.fill, resample=Image.Resampling.BICUBIC)
    assert torch.equal(augment_image(photo, row, spec)[0], timms_tail(changed, spec))


def test_posterize_to_no_bits_is_black(photo):
    spec = AugmentSpec(image_size=16, teacher_size=0)
    row = neutral_row(spec, photo, op_0=RAND_AUGMENT_OPS.index("Posterize"), arg_0=0)
    assert torch.equal(augment_image(photo, row, spec)[0], timms_tail(Image.new("RGB", (16, 16)), spec))


def test_weak_shift_matches_pad_and_crop(photo):
    spec = AugmentSpec(image_size=32, teacher_size=0, weak=True)
    picture = Image.fromarray(photo).resize((32, 32), Image.Resampling.BILINEAR)
    padded = functional.pad(picture, [4])
    expected = timms_tail(functional.hflip(functional.crop(padded, 1, 6, 32, 32)), spec)
    row = neutral_row(spec, photo, shift_y=1 - 4, shift_x=6 - 4, flip=1)
    assert torch.equal(augment_image(photo, row, spec)[0], expected)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erase_fills_the_rectangle_only(photo, mode):
    spec = AugmentSpec(image_size=40, teacher_size=0, erase_mode=mode)
    clean = augment_image(photo, neutral_row(spec, photo), spec)[0]
    box = {"erase_top": 3, "erase_left": 7, "erase_height": 20, "erase_width": 30}
    erased = augment_image(photo, neutral_row(spec, photo, noise_key_0=5, noise_key_1=9, **box), spec)[0]
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[3:23, 7:37] = True
    assert torch.equal(erased[:, ~inside], clean[:, ~inside])
    colours = erased[:, inside]
    assert colours.unique(dim=1).shape[1] == (600 if mode == "pixel" else 1)
    assert (colours == 0).all() == (mode == "const")


def test_noise_is_normal_and_independent_over_channels():
    noise = erase_noise(torch.tensor([1, 2]), 100_000)
    assert noise.mean(dim=0).abs().max() < 4.5 / 100_000**0.5
    assert (torch.cov(noise.T) - torch.eye(3)).abs().max() < 4.5 * (2 / 100_000) ** 0.5


@pytest.mark.parametrize(("size", "teacher_size"), [(224, 32), (32, 32), (96, 32), (64, 32), (50, 12)])
def test_teacher_input_is_torchs_bilinear_resize(size, teacher_size):
    images = torch.rand(2, 3, size, size)
    expected = F.interpolate(images, size=(teacher_size, teacher_size), mode="bilinear", align_corners=False)
    assert torch.equal(teacher_input(images, teacher_size), expected)


def test_teacher_of_224_sees_every_seventh_pixel(photo):
    image, teacher = augment_sample(photo, AugmentSpec(), index=3, seed=1, epoch=2)
    assert torch.equal(teacher, image[:, 3::7, 3::7])


def test_view_is_a_function_of_seed_epoch_and_index(photo):
    spec = AugmentSpec(image_size=32)
    views = [augment_sample(photo, spec, *key)[0] for key in ((1, 0, 0), (1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1))]
    assert torch.equal(views[0], views[1])
    assert all(not torch.equal(views[0], other) for other in views[2:])


def test_evaluation_is_pillows_bilinear_squash(photo):
    spec = AugmentSpec(image_size=48)
    picture = Image.fromarray(photo).resize((48, 48), Image.Resampling.BILINEAR)
    whole = spec.for_evaluation()
    assert torch.equal(augment_image(photo, neutral_row(whole, photo), whole)[0], timms_tail(picture, spec))
