"""What a view of an image is drawn from: crop, flip, a policy of operations, colour jitter, normalisation, erasing."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

from lgfast.spec.fields import Range, Share, check_fields
from lgfast.spec.pixels import EIGHT_BITS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Interpolation = Literal["nearest", "bilinear", "bicubic"]
EraseMode = Literal["const", "rand", "pixel"]
Policy = Literal["rand_augment", "trivial_augment", "three_augment"]
INTERPOLATIONS, ERASE_MODES, POLICIES = get_args(Interpolation), get_args(EraseMode), get_args(Policy)
Part = Annotated[float, Range(above=0, high=1)]
Ratio = Annotated[float, Range(0.0001, 10000)]
Spread = Annotated[float, Range(1e-6, 1000)]
Value = Annotated[float, Range(-3e38, 3e38)]
Alpha = Annotated[float, Range(0, 1000)]
Jitter = Annotated[float, Range(0, 10)]

# timm's fifteen operations of RandAugment, in timm's order.
RAND_AUGMENT_OPS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
# A plan names an operation by its index here, and -1 means "skipped". The last four are of other policies: a whole
# number of pixels to the right or down, Pillow's blur of a radius, and a turn of the hue, 1 a full one.
AUGMENT_OPS = (*RAND_AUGMENT_OPS, "TranslateXPixels", "TranslateYPixels", "GaussianBlur", "Hue")
JITTER_OPS = ("Brightness", "Contrast", "Color", "Hue")

# Columns of a plan that every specification has; `plan_columns` adds op_k and arg_k per slot: an operation.
PLAN_COLUMNS = (
    "crop_top",
    "crop_left",
    "crop_height",
    "crop_width",
    "shift_y",  # weak augmentation: output pixel (y, x) shows resized pixel (y + shift_y, x + shift_x), or black
    "shift_x",
    "flip",  # 1: mirrored, 2: upside down, 3: both
    "erase_top",
    "erase_left",
    "erase_height",  # 0: nothing is erased
    "erase_width",
    "noise_key_0",  # 32 bits each: the Philox key of the erase noise
    "noise_key_1",
)


def plan_columns(num_slots: int) -> tuple[str, ...]:
    """Return the names of the columns of a plan with `num_slots` operations."""
    return PLAN_COLUMNS + tuple(f"{name}_{slot}" for slot in range(num_slots) for name in ("op", "arg"))


@dataclass(frozen=True)
class RandAugmentPolicy:
    """The numbers in a timm string such as "rand-m9-mstd0.5-inc1".

    `magnitude_std` may be inf: magnitudes are then uniform in [0, magnitude].
    """

    num_ops: int = 2
    prob: float = 0.5
    magnitude: float = 10.0
    magnitude_std: float = 0.0
    magnitude_max: float = 10.0
    increasing: bool = False


_SECTIONS = {"m": "magnitude", "n": "num_ops", "p": "prob", "mstd": "magnitude_std", "mmax": "magnitude_max"}


@functools.cache
def parse_rand_augment(text: str) -> RandAugmentPolicy:
    """Parse timm's RandAugment string; "" means no operation.

    Raises:
        ValueError: the text is no "rand-..." string, or a section is none of m, n, p, mstd, mmax and inc.
    """
    if not text:
        return RandAugmentPolicy(num_ops=0)
    head, *sections = text.split("-")
    if head != "rand":
        raise ValueError(f'rand_augment: expected "" or a string such as "rand-m9-mstd0.5-inc1", got "{text}"')
    values: dict[str, Any] = {}
    for section in sections:
        match = re.fullmatch(r"([a-z]+)(\d+\.?\d*)", section)
        if match is None or match[1] not in (*_SECTIONS, "inc"):
            known = ", ".join((*_SECTIONS, "inc"))
            raise ValueError(f'rand_augment: unknown section "{section}" in "{text}"; known: {known}')
        key, number = match[1], float(match[2])
        values["increasing" if key == "inc" else _SECTIONS[key]] = number
    values["num_ops"] = int(values.get("num_ops", 2))
    values["increasing"] = bool(values.get("increasing", False))
    values["magnitude_max"] = values.get("magnitude_max", 0.0) or 10.0
    if values.get("magnitude_std", 0.0) > 100:  # timm's spelling of "uniform"
        values["magnitude_std"] = math.inf
    return RandAugmentPolicy(**values)


@dataclass(frozen=True)
class AugmentSpec:
    """The distribution of random views, and the form of the output.

    Attributes:
        image_size: side of the square output.
        teacher_size: side of the teacher's input, a bilinear resize of the output; 0: none.
        crop_scale: range of the crop's area, as a part of the image.
        crop_ratio: range of the crop's width / height.
        interpolation: Pillow filter of the resize and of rotate, shear and translate.
        flip_prob: probability of a horizontal flip.
        vertical_flip_prob: probability of a vertical flip.
        policy: operations on the resized image. "rand_augment": those of `rand_augment`; "trivial_augment": one of
            torchvision's TrivialAugmentWide (arXiv 2103.10158); "three_augment": solarize, grey or blur, as DeiT III
            has it and timm's "3a" (arXiv 2204.07118).
        rand_augment: timm's RandAugment string; "": none. Read by policy "rand_augment" alone.
        color_jitter: strength of brightness, contrast, saturation and hue of torchvision's ColorJitter, applied last,
            in random order; 0: off. DeiT III has (0.3, 0.3, 0.3, 0).
        erase_prob: probability that one rectangle is erased.
        erase_mode: "pixel" normal noise per value, "rand" one normal colour, "const" zero; after normalisation.
        mean, std: normalisation per channel, of values in [0, 1]; as many as the images have channels.
        value_range: pixel values that stand for 0 and 1.
        weak: the paper code's weak variant: bilinear resize, random shift by up to image_size // 8 over black, flip;
            settings of crop, policy, jitter and erasing are then ignored.
        mixup_alpha, cutmix_alpha: parameters of the Beta distribution of a batch's weight (`ops.mix`, the training
            loaders); 0: off; both above 0: one or the other with probability one half.

    >>> AugmentSpec(image_size=32, crop_scale=(0.3, 1.0), rand_augment="").plan_columns[:4]
    ('crop_top', 'crop_left', 'crop_height', 'crop_width')
    """

    image_size: Annotated[int, Range(1, 4096)] = 224
    teacher_size: Annotated[int, Range(0, 4096)] = 32
    crop_scale: tuple[Part, Part] = (0.08, 1.0)
    crop_ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip_prob: Share = 0.5
    vertical_flip_prob: Share = 0.0
    policy: Policy = "rand_augment"
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: tuple[Jitter, Jitter, Jitter, Jitter] = (0.0, 0.0, 0.0, 0.0)
    erase_prob: Share = 0.25
    erase_mode: EraseMode = "pixel"
    mean: tuple[Share, ...] = IMAGENET_MEAN
    std: tuple[Spread, ...] = IMAGENET_STD
    value_range: tuple[Value, Value] = EIGHT_BITS
    weak: bool = False
    mixup_alpha: Alpha = 0.0
    cutmix_alpha: Alpha = 0.0

    def __post_init__(self):
        check_fields(self)
        size = self.image_size
        _check(self.teacher_size <= size, "teacher_size", f"0 to image_size, {size}", self.teacher_size)
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            _check(low <= high, name, "the smaller value first", getattr(self, name))
        mean, std = self.mean, self.std
        _check(len(mean) > 0, "mean", "a value for each channel", mean)
        if len(mean) == len(IMAGENET_MEAN):  # else mean was set, perhaps without std
            _check(len(std) == len(mean), "std", f"{len(mean)} values, as mean has", std)
        _check(len(mean) == len(std), "mean", f"{len(std)} values, as std has", mean)
        _check(self.value_range[0] < self.value_range[1], "value_range", "the smaller value first", self.value_range)
        policy = parse_rand_augment(self.rand_augment)
        _check(policy.num_ops <= 8, "rand_augment", "at most n8", self.rand_augment)
        _check(policy.prob <= 1, "rand_augment", "p at most 1", self.rand_augment)
        hue = self.color_jitter[3]
        _check(hue <= 0.5, "color_jitter", "a hue of at most 0.5, half a turn", hue)

    @property
    def rand_augment_policy(self) -> RandAugmentPolicy:
        """The RandAugment settings in force (none under `weak` and other policies)."""
        return parse_rand_augment("" if self.weak or self.policy != "rand_augment" else self.rand_augment)

    @property
    def num_policy_ops(self) -> int:
        """Operations of the policy in a view, skipped ones included."""
        is_single = self.policy != "rand_augment" and not self.weak
        return 1 if is_single else self.rand_augment_policy.num_ops

    @property
    def jitter(self) -> tuple[float, ...]:
        """The colour jitter in force (none under `weak`)."""
        return (0.0,) * len(JITTER_OPS) if self.weak else self.color_jitter

    @property
    def num_slots(self) -> int:
        """Operations of a view: the policy's, then those of the colour jitter."""
        return self.num_policy_ops + sum(strength > 0 for strength in self.jitter)

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed (mixup or cutmix)."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @property
    def resample(self) -> str:
        """The interpolation in force (bilinear under `weak`)."""
        return "bilinear" if self.weak else self.interpolation

    @property
    def max_shift(self) -> int:
        """Largest shift of the weak variant, in pixels; 0 otherwise."""
        return self.image_size // 8 if self.weak else 0

    @property
    def channels(self) -> int:
        """Values of a pixel."""
        return len(self.mean)

    @property
    def fill(self) -> tuple[int, ...]:
        """Colour of what rotate, shear and translate bring into view: the mean in 8 bits, as timm rounds it."""
        return tuple(min(255, round(255 * value)) for value in self.mean)

    @property
    def plan_columns(self) -> tuple[str, ...]:
        """The names of a plan's columns, in order."""
        return plan_columns(self.num_slots)

    def for_evaluation(self) -> AugmentSpec:
        """Return the specification of the same output from a whole image: Pillow's bilinear squash, nothing random."""
        return replace(
            self,
            interpolation="bilinear",
            policy="rand_augment",
            rand_augment="",
            color_jitter=(0.0, 0.0, 0.0, 0.0),
            flip_prob=0.0,
            vertical_flip_prob=0.0,
            erase_prob=0.0,
            weak=False,
        )


def _check(condition: bool, name: str, expected: str, got) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")
