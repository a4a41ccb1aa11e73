"""The CUDA kernels of augment and augment_plan, in the host emulation, give the bytes of the CPU kernels."""

import struct

import pytest
import torch

from lgfast.ops.augment import augment, augment_plan, eval_plan
from lgfast.spec.augment import AUGMENT_OPS, ERASE_MODES, INTERPOLATIONS, PLAN_COLUMNS, POLICIES, AugmentSpec
from tests.emulation.build import build
from tests.emulation.driver import DTYPES, raw, run_driver
from tests.ops.real_images import pack, photographs, small_images

COUNTER = torch.tensor([11, 4])
JITTER = (0.4, 0.3, 0.2, 0.1)  # of policies other than RandAugment


@pytest.fixture(scope="module")
def driver():
    return build("augment_driver", ["tests/emulation/augment_driver.cpp"])


def run(
    driver, folder, stored, plan, spec, dtype=torch.float32, threads=64, workspace_blocks=0, blocks_at_once=1, seeds=2
):
    """Return emulated images and teacher_images of all stored images, their parts, and a plan under the spec's policy.

    With workspace_blocks, so many blocks divide the images' views as if blocks_at_once of them ran at once.
    """
    batch, is_recipe = len(plan), spec.policy == "rand_augment"
    header = struct.pack(
        "15q", len(stored[0]), len(stored[1]), batch, plan.shape[1], spec.image_size, spec.teacher_size,
        INTERPOLATIONS.index(spec.resample), ERASE_MODES.index(spec.erase_mode), threads, workspace_blocks or batch,
        workspace_blocks > 0, blocks_at_once, DTYPES.index(dtype), seeds,
        POLICIES.index(spec.policy),
    )  # fmt: skip
    tensors = (*stored, torch.arange(batch), plan, COUNTER)
    shapes = [((batch, 3, size, size), dtype) for size in (spec.image_size, spec.teacher_size)]
    shapes.append(((1 + 8 * batch, 4), torch.int16))
    shapes.append(((batch, len(PLAN_COLUMNS) + (4 if is_recipe else 2 + 2 * len(JITTER))), torch.float64))
    return run_driver(driver, folder, [header, *map(raw, tensors)], shapes)[0]


def assert_equals_cpu(driver, folder, stored, plan, spec, **options):
    images, teacher_images, _, drawn = run(driver, folder, stored, plan, spec, **options)
    indices, dtype = torch.arange(len(plan)), options.get("dtype", torch.float32)
    expected, expected_teacher = augment(*stored, indices, plan, spec, dtype)
    assert torch.equal(images, expected)
    assert expected_teacher is None if spec.teacher_size == 0 else torch.equal(teacher_images, expected_teacher)
    others = {} if spec.policy == "rand_augment" else {"policy": spec.policy, "color_jitter": JITTER}
    recipe = AugmentSpec(image_size=spec.image_size, teacher_size=0, vertical_flip_prob=0.25, **others)
    assert torch.equal(drawn, augment_plan(recipe, stored[2][: len(plan)], indices, COUNTER))


def plan_of_every_operation(spec, stored):
    plan = eval_plan(spec, stored[2])
    plan[:, -4] = torch.arange(19)
    plan[:, -3] = torch.tensor(
        [0, 0, 0, 27.0, 1, 26, 99, 1.8, 0.2, 1.7, 1.8, 0.27, -0.25, 0.4, -0.3, 3, -2, 1.3, 0.4], dtype=torch.float64
    )
    plan[:, -2] = torch.arange(19).flip(0)
    plan[:, -1] = plan[:, -3].flip(0)
    return plan


DIVIDED = {"workspace_blocks": 7, "blocks_at_once": 1000}


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_operation_equals_the_cpu(driver, tmp_path, interpolation):
    spec = AugmentSpec(image_size=22, teacher_size=5, interpolation=interpolation)
    stored = pack(small_images(len(AUGMENT_OPS)))
    assert_equals_cpu(driver, tmp_path, stored, plan_of_every_operation(spec, stored), spec)


@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_operation_of_divided_images_equals_the_cpu(driver, tmp_path, interpolation, is_flipped):
    spec = AugmentSpec(image_size=48, teacher_size=12, interpolation=interpolation)
    stored = pack(small_images(len(AUGMENT_OPS)))
    plan = plan_of_every_operation(spec, stored)
    plan[:, PLAN_COLUMNS.index("flip")] = 2 * is_flipped
    assert_equals_cpu(driver, tmp_path, stored, plan, spec, **DIVIDED)


def test_images_are_divided_where_there_are_blocks_for_it(driver, tmp_path):
    spec, stored = AugmentSpec(image_size=48, teacher_size=12), pack(small_images(3))
    plan = eval_plan(spec, stored[2])
    rotate, equalize = AUGMENT_OPS.index("Rotate"), AUGMENT_OPS.index("Equalize")
    plan[:, -4:] = torch.tensor([[rotate, 20.0, -1, 0], [rotate, 20.0, equalize, 0], [-1, 0, -1, 0]])

    def parts(blocks_at_once):
        listed = run(driver, tmp_path, stored, plan, spec, workspace_blocks=2, blocks_at_once=blocks_at_once)[2]
        count = listed[0, :2].view(torch.int32).item()
        return [(row, part, num_parts) for row, _, part, num_parts in listed[1 : 1 + count].tolist()]

    assert parts(1) == [(row, 0, 1) for row in range(3)]
    assert parts(1000) == [(row, part, 6) for row in range(3) for part in range(6)]  # of two units of 4 rows each
    divided = parts(10)
    rotated, counted, plain = ({row: num_parts for row, _, num_parts in divided}[row] for row in range(3))
    assert rotated > plain > counted == 1  # a part would repeat most of what is counted last
    numbers = enumerate((rotated, counted, plain))
    assert divided == [(row, part, number) for row, number in numbers for part in range(number)]


@pytest.mark.parametrize("options", [{}, DIVIDED], ids=["whole", "divided"])
def test_rotated_areas_of_one_value_equal_the_cpu(driver, tmp_path, options):
    """There the taps of most pixels are alike, and their estimates lie on whole numbers."""
    stored = pack(small_images(4))
    spec = AugmentSpec(image_size=48, teacher_size=12)
    plan = eval_plan(spec, stored[2])
    plan[:, -4], plan[:, -3] = AUGMENT_OPS.index("Posterize"), 1
    plan[:, -2], plan[:, -1] = AUGMENT_OPS.index("Rotate"), torch.tensor([20.0, -33.0, 90.0, 0.5])
    assert_equals_cpu(driver, tmp_path, stored, plan, spec, **options)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ({"image_size": 24, "teacher_size": 8}, {"dtype": torch.bfloat16}),
        ({"image_size": 33, "teacher_size": 4, "erase_prob": 1.0}, {"threads": 96}),
        ({"image_size": 16, "teacher_size": 16, "erase_prob": 1.0, "erase_mode": "rand"}, {"workspace_blocks": 2}),
        ({"image_size": 19, "teacher_size": 3, "weak": True}, {}),
        ({"image_size": 21, "teacher_size": 3, "policy": "trivial_augment", "vertical_flip_prob": 0.5}, {}),
        ({"image_size": 24, "teacher_size": 3, "policy": "three_augment", "color_jitter": JITTER}, {"threads": 96}),
        ({"image_size": 64, "teacher_size": 16, "erase_prob": 1.0}, {"dtype": torch.bfloat16, **DIVIDED}),
        ({"image_size": 37, "teacher_size": 0, "erase_prob": 1.0}, DIVIDED),
        ({"image_size": 32, "teacher_size": 8, "weak": True}, DIVIDED),
        ({"image_size": 48, "teacher_size": 12, "policy": "trivial_augment", "vertical_flip_prob": 0.5}, DIVIDED),
        ({"image_size": 48, "teacher_size": 8, "policy": "three_augment", "color_jitter": JITTER}, DIVIDED),
    ],
    ids=[
        *("bf16", "erased, odd size", "in global memory", "weak", "trivial", "three"),
        *("divided, bf16", "divided, odd size", "divided, weak", "divided, trivial", "divided, three"),
    ],
)
def test_random_views_equal_the_cpu(driver, tmp_path, arguments, options):
    spec, stored = AugmentSpec(**arguments), pack(small_images(12))
    plan = augment_plan(spec, stored[2], torch.arange(12), COUNTER)
    assert_equals_cpu(driver, tmp_path, stored, plan, spec, **options)


def test_large_ragged_photographs_equal_the_cpu(driver, tmp_path):
    photo = photographs()[0]
    spec = AugmentSpec(image_size=12, teacher_size=3)
    stored = pack([photo[:, :90], photo[:50, 100:160], photo[200:240]])
    assert_equals_cpu(driver, tmp_path, stored, eval_plan(spec, stored[2]), spec, seeds=1)


def test_crop_beyond_the_limit_gives_nan(driver, tmp_path):
    spec = AugmentSpec(image_size=1, teacher_size=1).for_evaluation()
    stored = torch.zeros(3 * 40_000, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), torch.tensor([[40_000, 1]])
    stored = (*stored[:2], stored[2].int())
    images, teacher_images, *_ = run(driver, tmp_path, stored, eval_plan(spec, stored[2]), spec)
    assert images.isnan().all() and teacher_images.isnan().all()
