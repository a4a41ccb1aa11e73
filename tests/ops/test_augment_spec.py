"""AugmentSpec: what it accepts, what it derives, and timm's RandAugment strings."""

import math

import pytest

from lgfast.spec.augment import PLAN_COLUMNS, POLICIES, AugmentSpec, RandAugmentPolicy, parse_rand_augment


@pytest.mark.parametrize(
    "text", ["rand-m9-mstd0.5-inc1", "rand-m7-n3-mstd0.2", "rand-n1-p0.8-mmax20-m15-inc1", "rand-mstd101"]
)
def test_string_means_what_timm_reads(text):
    from timm.data.auto_augment import rand_augment_transform

    policy, theirs = parse_rand_augment(text), rand_augment_transform(text)
    op = theirs.ops[0]
    assert policy.num_ops == theirs.num_layers
    assert (policy.prob, policy.magnitude, policy.magnitude_std) == (op.prob, op.magnitude, op.magnitude_std)
    assert policy.magnitude_max == (op.magnitude_max or 10)
    assert policy.increasing == ("PosterizeIncreasing" in [op.name for op in theirs.ops])


def test_operations_stand_in_timms_order():
    from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS

    from lgfast.spec.augment import RAND_AUGMENT_OPS

    names = [name.removesuffix("Increasing").removesuffix("Rel") for name in _RAND_INCREASING_TRANSFORMS]
    assert tuple(names) == RAND_AUGMENT_OPS


def test_empty_string_means_no_operation():
    assert parse_rand_augment("") == RandAugmentPolicy(num_ops=0)
    assert AugmentSpec(rand_augment="").plan_columns == PLAN_COLUMNS


def test_plan_columns_name_every_slot():
    assert AugmentSpec(rand_augment="rand-n3").plan_columns[-6:] == ("op_0", "arg_0", "op_1", "arg_1", "op_2", "arg_2")
    jittered = AugmentSpec(rand_augment="rand-n3", policy="trivial_augment", color_jitter=(0.4, 0.0, 0.4, 0.0))
    assert jittered.plan_columns[-6:] == ("op_0", "arg_0", "op_1", "arg_1", "op_2", "arg_2")


def test_weak_variant_switches_the_strong_parts_off():
    jitter = (0.1, 0.1, 0.1, 0.1)
    for policy in POLICIES:
        spec = AugmentSpec(weak=True, image_size=32, policy=policy, color_jitter=jitter)
        assert (spec.num_slots, spec.resample, spec.max_shift) == (0, "bilinear", 4)


def test_evaluation_keeps_the_output_and_drops_chance():
    jitter = (0.1, 0.1, 0.1, 0.1)
    spec = AugmentSpec(image_size=64, teacher_size=8, policy="three_augment", color_jitter=jitter, vertical_flip_prob=1)
    spec = spec.for_evaluation()
    assert (spec.image_size, spec.teacher_size, spec.interpolation) == (64, 8, "bilinear")
    assert (spec.flip_prob, spec.vertical_flip_prob, spec.erase_prob, spec.num_slots) == (0, 0, 0, 0)


def test_fill_is_the_rounded_mean():
    assert AugmentSpec().fill == (124, 116, 104)


def test_infinite_deviation_means_uniform():
    assert math.isinf(parse_rand_augment("rand-m9-mstd101").magnitude_std)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size: expected 1 to 4096, got 0"),
        ({"teacher_size": 300}, "teacher_size: expected 0 to image_size"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale: expected"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio: expected"),
        ({"interpolation": "cubic"}, "interpolation: expected one of"),
        ({"erase_mode": "noise"}, "erase_mode: expected one of"),
        ({"flip_prob": 1.5}, "flip_prob: expected 0 to 1"),
        ({"std": (1.0, 0.0, 1.0)}, "std: expected 1e-06 to 1000 for each item"),
        ({"rand_augment": "rand-m9-w1"}, 'unknown section "w1"'),
        ({"rand_augment": "auto"}, "expected"),
        ({"rand_augment": "rand-n9"}, "at most n8"),
        ({"policy": "3a"}, "policy: expected one of rand_augment, trivial_augment, three_augment, got '3a'"),
        ({"color_jitter": (0.3, 0.3, 0.3, 0.6)}, "color_jitter: expected a hue of at most 0.5, half a turn, got 0.6"),
        ({"color_jitter": (0.3, 0.3, 0.3)}, "color_jitter: expected 4 values"),
    ],
)
def test_rejects_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        AugmentSpec(**arguments)
