"""The augment ops: normalisation, erasing, the teacher's input, formats, registration, errors."""

import bisect

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lgfast import _extension
from lgfast.ops.augment import augment, augment_plan, check_source_sizes, eval_plan
from lgfast.ops.reference.augment import apply_plan, erase_noise
from lgfast.ops.reference.augment_plan import augment_plan as reference_plan
from lgfast.spec.augment import PLAN_COLUMNS, AugmentSpec
from tests.ops.real_images import pack, small_images

NUM_IMAGES = 24
COUNTER = torch.tensor([7, 2])
NOISE_ERROR = 1e-5  # float32 polynomials against float32 libm: a few units in the last place of values up to 6.7


@pytest.fixture(scope="module")
def stored():
    return pack(small_images(NUM_IMAGES))


def views(stored, spec, plan=None, **options):
    indices = torch.arange(NUM_IMAGES)
    plan = augment_plan(spec, stored[2], indices, COUNTER) if plan is None else plan
    return augment(*stored, indices, plan, spec, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"image_size": 32, "crop_scale": (0.9, 1.0), "rand_augment": "rand-m9-mstd101-n3-p0.8"},
        {"weak": True, "policy": "trivial_augment", "color_jitter": (0.1, 0.1, 0.1, 0.1)},
        {"policy": "trivial_augment", "vertical_flip_prob": 0.5},
        {"policy": "three_augment", "color_jitter": (0.3, 0.3, 0.3, 0.0)},
        {"rand_augment": "rand-n3", "color_jitter": (0.0, 2.0, 0.0, 0.5)},
        {"image_size": 5, "teacher_size": 5, "rand_augment": "", "flip_prob": 0.0, "erase_prob": 1.0},
    ],
)
def test_plan_equals_reference(arguments):
    spec = AugmentSpec(**arguments)
    sizes = torch.randint(1, 300, (5000, 2), dtype=torch.int32)
    indices = torch.cat((torch.arange(4998), torch.tensor([2**32 + 5, 2**40])))
    for counter in (torch.tensor([0, 0]), torch.tensor([-3, 2**31])):
        plan, expected = augment_plan(spec, sizes, indices, counter), reference_plan(spec, sizes, indices, counter)
        whole = [column for column, name in enumerate(spec.plan_columns) if not name.startswith("arg")]
        assert torch.equal(plan[:, whole], expected[:, whole])
        torch.testing.assert_close(plan, expected, rtol=1e-12, atol=1e-12)  # cos and log of two math libraries


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_views_match_the_reference(stored, mode):
    spec = AugmentSpec(erase_mode=mode, erase_prob=0.7)
    plan = augment_plan(spec, stored[2], torch.arange(NUM_IMAGES), COUNTER)
    images, teacher_images = views(stored, spec, plan)
    for number, picture in enumerate(small_images(NUM_IMAGES)):
        image, teacher_image = apply_plan(Image.fromarray(picture), plan[number].tolist(), spec)
        assert (images[number] - image).abs().max() < NOISE_ERROR
        assert (teacher_images[number] - teacher_image).abs().max() < NOISE_ERROR
        row = dict(zip(spec.plan_columns, plan[number].int().tolist(), strict=True))
        rectangle = torch.zeros(224, 224, dtype=torch.bool)
        bottom, right = row["erase_top"] + row["erase_height"], row["erase_left"] + row["erase_width"]
        rectangle[row["erase_top"] : bottom, row["erase_left"] : right] = True
        assert torch.equal(images[number][:, ~rectangle], image[:, ~rectangle])


def test_noise_matches_the_reference(stored):
    spec = AugmentSpec(image_size=224, teacher_size=0)
    plan = eval_plan(spec, stored[2])
    for name, value in {
        "erase_height": 224,
        "erase_width": 224,
        "noise_key_0": 2**32 - 1,
        "noise_key_1": 12345,
    }.items():
        plan[:, PLAN_COLUMNS.index(name)] = value
    noise = views(stored, spec, plan)[0][0].flatten(1).T
    expected = erase_noise(torch.tensor([2**32 - 1, 12345]), 224 * 224)
    assert (noise - expected).abs().max() < NOISE_ERROR
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5 and abs(noise.std() - 1) < 4 / (2 * noise.numel()) ** 0.5


@pytest.mark.parametrize(("size", "teacher_size"), [(224, 32), (32, 32), (64, 32), (50, 12), (33, 1)])
def test_teacher_input_is_a_bilinear_resize(stored, size, teacher_size):
    images, teacher_images = views(stored, AugmentSpec(image_size=size, teacher_size=teacher_size))
    expected = F.interpolate(images, size=(teacher_size, teacher_size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(teacher_images, expected, rtol=0, atol=4e-6)
    if size == 224:
        assert torch.equal(teacher_images, images[..., 3::7, 3::7])
    if size == teacher_size:
        assert torch.equal(teacher_images, images)


def test_no_teacher_input_on_request(stored):
    assert views(stored, AugmentSpec(image_size=16, teacher_size=0))[1] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_formats_hold_the_same_values(stored, dtype, channels_last):
    spec = AugmentSpec(image_size=40, teacher_size=8)
    exact, exact_teacher = views(stored, spec)
    images, teacher_images = views(stored, spec, dtype=dtype, channels_last=channels_last)
    assert torch.equal(images, exact.to(dtype))
    assert torch.equal(teacher_images, exact_teacher.to(dtype))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=memory_format) and teacher_images.is_contiguous(
        memory_format=memory_format
    )


def test_view_does_not_depend_on_batch_or_threads(stored):
    spec = AugmentSpec(image_size=48)
    together = views(stored, spec)[0]
    threads = torch.get_num_threads()
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            for index in (0, 5, NUM_IMAGES - 1):
                alone = torch.tensor([index])
                plan = augment_plan(spec, stored[2][alone], alone, COUNTER)
                assert torch.equal(augment(*stored, alone, plan, spec)[0][0], together[index])
    finally:
        torch.set_num_threads(threads)


def test_empty_batch(stored):
    spec, nothing = AugmentSpec(image_size=16, teacher_size=4), torch.zeros(0, dtype=torch.int64)
    plan = augment_plan(spec, stored[2][:0], nothing, COUNTER)
    images, teacher_images = augment(*stored, nothing, plan, spec)
    assert images.shape == (0, 3, 16, 16) and teacher_images.shape == (0, 3, 4, 4)


def call_arguments(spec, stored, plan):
    """What the Python function hands to torch.ops.lgfast.augment."""
    shape = (spec.image_size, spec.teacher_size, 2, 2, list(spec.fill), list(spec.mean), list(spec.std))
    return (*stored, torch.arange(NUM_IMAGES), plan, *shape, torch.bfloat16, True)


def test_opcheck(stored):
    spec = AugmentSpec(image_size=16, teacher_size=4, erase_prob=0)
    plan = augment_plan(spec, stored[2], torch.arange(NUM_IMAGES), COUNTER)
    torch.library.opcheck(torch.ops.lgfast.augment, call_arguments(spec, stored, plan))
    policy = (16, False, [0.1, 1.0], [0.8, 1.2], 0.5, 0, 0.5, 2, 0.5, 9.0, 0.5, 10.0, True)
    for others in ((), (0.1, 0, [0.1, 0.0, 0.2, 0.0])):
        arguments = (stored[2], torch.arange(NUM_IMAGES), COUNTER, *policy, *others)
        torch.library.opcheck(torch.ops.lgfast.augment_plan, arguments)


def test_compiles_without_a_graph_break(stored):
    spec = AugmentSpec(image_size=24, teacher_size=8)

    def draw_and_make(sizes, indices, counter):
        plan = augment_plan(spec, sizes, indices, counter)
        return augment(*stored, indices, plan, spec)[0] * 2

    arguments = stored[2], torch.arange(NUM_IMAGES), COUNTER
    compiled = torch.compile(draw_and_make, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), draw_and_make(*arguments))


def test_reference_kernel_gives_the_same_views(stored):
    from lgfast.ops.augment import _reference_augment, _reference_plan

    spec = AugmentSpec(image_size=20, teacher_size=10, erase_prob=0)
    plan = augment_plan(spec, stored[2], torch.arange(NUM_IMAGES), COUNTER)
    images, teacher_images = _reference_augment(*call_arguments(spec, stored, plan))
    expected, expected_teacher = views(stored, spec, plan, dtype=torch.bfloat16, channels_last=True)
    assert torch.equal(images, expected) and images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(teacher_images, expected_teacher)
    policy = spec.rand_augment_policy
    redrawn = _reference_plan(
        stored[2], torch.arange(NUM_IMAGES), COUNTER, 20, False, spec.crop_scale, spec.crop_ratio, 0.5, 0, 0.0, 2,
        policy.prob, policy.magnitude, policy.magnitude_std, policy.magnitude_max, True,
    )  # fmt: skip
    torch.testing.assert_close(redrawn, plan, rtol=1e-12, atol=1e-12)


def test_rejects_what_it_cannot_do(stored):
    spec = AugmentSpec(image_size=16, teacher_size=0)
    indices = torch.arange(NUM_IMAGES)
    plan = eval_plan(spec, stored[2])
    with pytest.raises(ValueError, match=r"dtype must be float32, bfloat16 or float16, got torch\.float64"):
        augment(*stored, indices, plan, spec, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"plan must be contiguous float64 \[24, 17\], got float64 \[24, 13\] not"):
        augment(*stored, indices, plan[:, :13], spec)


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, lambda x: x.float(), r"pixels must be contiguous uint8 \[num_bytes\], got float32 \[73728\]"),
        (0, lambda x: x.view(-1, 32, 32, 3), r"pixels must be .*, got uint8 \[24, 32, 32, 3\]"),
        (1, lambda x: x.tolist(), r"offsets must be a tensor, got list"),
        (2, lambda x: x.long(), r"sizes must be contiguous int32 \[24, 2\], got int64 \[24, 2\]"),
        (2, lambda x: x[:5], r"sizes must be contiguous int32 \[24, 2\], got int32 \[5, 2\]"),
        (3, lambda x: x.int(), r"indices must be contiguous int64 \[B\], got int32 \[24\]"),
        (
            4,
            lambda x: x.repeat(1, 2)[:, ::2],
            r"plan must be contiguous float64 \[24, 17\], got float64 \[24, 17\] not",
        ),
        (5, lambda x: None, r"spec must be an AugmentSpec, got NoneType"),
    ],
)
def test_a_wrong_tensor_is_named(stored, place, wrong, message):
    spec = AugmentSpec(image_size=16, teacher_size=0)
    arguments = [*stored, torch.arange(NUM_IMAGES), eval_plan(spec, stored[2]), spec]
    arguments[place] = wrong(arguments[place])
    with pytest.raises(ValueError, match=f"^augment: {message}"):
        augment(*arguments)


def test_a_wrong_tensor_of_a_plan_is_named(stored):
    with pytest.raises(ValueError, match=r"augment_plan: counter must be contiguous int64 \[2\], got int64 \[1\]"):
        augment_plan(AugmentSpec(), stored[2], torch.arange(NUM_IMAGES), COUNTER[:1])
    with pytest.raises(ValueError, match=r"augment_plan: indices must be contiguous int64 \[24\], got int64 \[3\]"):
        augment_plan(AugmentSpec(), stored[2], torch.arange(3), COUNTER)


@pytest.mark.skipif(not _extension.has_native(), reason="these checks are the native kernel's")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_top": 1}, "the crop in row 3 of plan must lie inside its image"),
        ({"crop_width": 0}, "the crop in row 3 of plan must lie inside its image"),
        ({"erase_height": 17}, "the erased rectangle in row 3 of plan must lie inside the output"),
        ({"index": NUM_IMAGES}, r"indices must lie in \[0, 24\), got 24"),
        ({"offset": 10**9}, "must lie inside pixels"),
    ],
)
def test_cpu_kernel_checks_the_plan(stored, change, message):
    spec = AugmentSpec(image_size=16, teacher_size=0)
    plan, indices, offsets = eval_plan(spec, stored[2]), torch.arange(NUM_IMAGES), stored[1].clone()
    for name, value in change.items():
        if name == "index":
            indices[3] = value
        elif name == "offset":
            offsets[3] = value
        else:
            plan[3, PLAN_COLUMNS.index(name)] = value
    with pytest.raises(RuntimeError, match=message):
        augment(stored[0], offsets, stored[2], indices, plan, spec)


@pytest.mark.skipif(not _extension.has_native(), reason="this limit is the native kernel's")
def test_crop_beyond_the_limit_is_refused():
    huge, first = torch.zeros(3 * 40_000, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    spec = AugmentSpec(image_size=1, teacher_size=0).for_evaluation()
    sizes = torch.tensor([[40_000, 1]], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="is too large to reduce to 1; store smaller images"):
        augment(huge, first, sizes, first, eval_plan(spec, sizes), spec)


@pytest.mark.skipif(not _extension.has_native(), reason="this limit is the native kernel's")
@pytest.mark.parametrize("weak", [False, True])  # bicubic, bilinear
def test_a_gpu_refuses_images_where_the_cpu_refuses_their_crops(weak):
    spec, first = AugmentSpec(image_size=16, teacher_size=0, weak=weak), torch.zeros(1, dtype=torch.int64)
    pixels = torch.zeros(3 * 20_000, dtype=torch.uint8)

    def cpu_refuses(height):
        sizes = torch.tensor([[height, 1]], dtype=torch.int32)
        try:
            augment(pixels, first, sizes, first, eval_plan(spec, sizes), spec)
        except RuntimeError:
            return True
        return False

    largest = bisect.bisect_left(range(20_000), True, lo=16, key=cpu_refuses) - 1
    assert 2000 < largest < 19_000
    sizes = torch.tensor([[5, 9], [3, largest], [largest, 1]])
    check_source_sizes(spec, sizes, torch.device("cuda"))
    check_source_sizes(spec, sizes + 1, torch.device("cpu"))
    sizes[2, 0] += 1
    with pytest.raises(ValueError, match=f"crop of {largest + 1}x1 is too large to reduce to 16; .* {largest} pixels"):
        check_source_sizes(spec, sizes, torch.device("cuda"))
