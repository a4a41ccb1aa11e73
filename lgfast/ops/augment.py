"""augment_plan and augment: random views of a batch of uint8 images, drawn and made in one launch each."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import torch
from PIL import Image
from torch import Tensor

from lgfast import _extension
from lgfast.ops.inputs import check_tensor
from lgfast.ops.reference.augment_plan import augment_plan as reference_plan
from lgfast.ops.reference.augment_plan import eval_plan
from lgfast.ops.teacher_input import teacher_input
from lgfast.spec.augment import (
    ERASE_MODES,
    INTERPOLATIONS,
    PLAN_COLUMNS,
    POLICIES,
    AugmentSpec,
    RandAugmentPolicy,
    plan_columns,
)

__all__ = ["augment", "augment_plan", "check_source_sizes", "eval_plan", "largest_source_side"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def augment_plan(spec: AugmentSpec, sizes: Tensor, indices: Tensor, counter: Tensor) -> Tensor:
    """Draw the random view of every image of a batch.

    Each row depends on (seed, epoch, index) alone (Philox 4x32-10): not on the batch, the rank or the device. Crop,
    RandAugment, three-augment and erasing follow timm's distributions, TrivialAugment and colour jitter torchvision's.

    Args:
        spec: what is drawn.
        sizes: (B, 2) int32, height and width of each source image.
        indices: (B,) int64, the images' numbers in their data set, at least 0.
        counter: (2,) int64, seed and epoch; a tensor, so that a captured CUDA graph can move on.
            All three on one device, CPU or CUDA.
    Returns:
        (B, P) float64, columns named by `spec.plan_columns`: crop, shift, flips, erased rectangle, key of the noise,
        and operation (an index into AUGMENT_OPS, -1: skipped) with its argument per slot.
    Raises:
        ValueError: a tensor has another dtype or shape.
    Source: timm 1.0 (RandomResizedCropAndInterpolation, RandAugment, auto_augment_policy_3a, RandomErasing);
        torchvision (TrivialAugmentWide, ColorJitter).

    >>> sizes, indices = torch.tensor([[32, 32], [48, 32]], dtype=torch.int32), torch.arange(2)
    >>> plan = augment_plan(AugmentSpec(image_size=32), sizes, indices, counter=torch.tensor([1, 0]))
    >>> tuple(plan.shape) == (2, len(AugmentSpec().plan_columns))
    True
    """
    _check_spec("augment_plan", spec)
    check_tensor("augment_plan", "sizes", sizes, torch.int32, "B", 2)
    check_tensor("augment_plan", "indices", indices, torch.int64, len(sizes))
    check_tensor("augment_plan", "counter", counter, torch.int64, 2)
    policy = spec.rand_augment_policy
    return torch.ops.lgfast.augment_plan(
        sizes,
        indices,
        counter,
        spec.image_size,
        spec.weak,
        list(spec.crop_scale),
        list(spec.crop_ratio),
        spec.flip_prob,
        spec.max_shift,
        spec.erase_prob,
        spec.num_policy_ops,
        policy.prob,
        policy.magnitude,
        policy.magnitude_std,
        policy.magnitude_max,
        policy.increasing,
        *_beyond_defaults(spec),
    )


def augment(
    pixels: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    indices: Tensor,
    plan: Tensor,
    spec: AugmentSpec,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Make the views that a plan describes: crop, resize, flip, operations, normalise, erase; and the teacher's input.

    Pixel values before normalisation are Pillow's and timm's, bit for bit.

    Args:
        pixels: uint8, flat: images back to back, each [h, w, 3]; `images.flatten()` of images of one size, whose
            offsets are then `torch.arange(n) * h * w * 3`.
        offsets: (n,) int64, first byte of each image.
        sizes: (n, 2) int32, height and width of each image.
        indices: (B,) int64, the images of this batch.
        plan: (B, P) float64 from `augment_plan` or `eval_plan`, or set by hand.
            All on one device, CPU or CUDA. On CUDA the values of indices and plan are not checked, and a crop that is
            too large gives NaN: see `check_source_sizes`.
        spec: the specification that the plan belongs to.
        dtype: float32, bfloat16 or float16, of both results.
        channels_last: memory format of both results; the shapes stay (B, 3, h, w).
    Returns:
        images (B, 3, S, S); teacher_images (B, 3, s, s), a bilinear resize of images (every seventh pixel from the
        third for 224 -> 32), or None for spec.teacher_size 0.
    Raises:
        ValueError: a tensor has another dtype or shape, or the plan another number of columns than the spec.
        RuntimeError: on CPU, an index, crop or rectangle that lies outside.

    >>> spec = AugmentSpec(image_size=24, teacher_size=8)
    >>> pixels = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)  # five images
    >>> offsets, sizes = torch.arange(5) * 32 * 32 * 3, torch.full((5, 2), 32, dtype=torch.int32)
    >>> indices = torch.tensor([0, 3])
    >>> plan = augment_plan(spec, sizes[indices], indices, counter=torch.tensor([1, 0]))
    >>> images, teacher_images = augment(pixels.flatten(), offsets, sizes, indices, plan, spec)
    >>> images.shape, teacher_images.shape
    (torch.Size([2, 3, 24, 24]), torch.Size([2, 3, 8, 8]))
    """
    _check_arguments(pixels, offsets, sizes, indices, plan, spec, dtype)
    images, teacher_images = torch.ops.lgfast.augment(
        pixels,
        offsets,
        sizes,
        indices,
        plan,
        spec.image_size,
        spec.teacher_size,
        INTERPOLATIONS.index(spec.resample),
        ERASE_MODES.index(spec.erase_mode),
        list(spec.fill),
        list(spec.mean),
        list(spec.std),
        dtype,
        channels_last,
    )
    return images, teacher_images if spec.teacher_size else None


def _beyond_defaults(spec: AugmentSpec) -> tuple[float, int, list[float]] | tuple[()]:
    """Return vertical flip, policy and jitter as the operation takes them; nothing where it draws none of them."""
    values = spec.vertical_flip_prob, POLICIES.index(spec.policy), list(spec.jitter)
    return values if any(values[:2]) or any(spec.jitter) else ()


def _check_spec(op: str, spec: AugmentSpec) -> None:
    if not isinstance(spec, AugmentSpec):
        raise ValueError(f"{op}: spec must be an AugmentSpec, got {type(spec).__name__}")


def _check_arguments(
    pixels: Tensor, offsets: Tensor, sizes: Tensor, indices: Tensor, plan: Tensor, spec: AugmentSpec, dtype: torch.dtype
) -> None:
    _check_spec("augment", spec)
    if spec.channels != 3:
        raise ValueError(f"augment: spec.mean must have 3 values, since pixels are RGB, got {spec.channels}")
    if dtype not in _DTYPES:
        raise ValueError(f"augment: dtype must be float32, bfloat16 or float16, got {dtype}")
    check_tensor("augment", "pixels", pixels, torch.uint8, "num_bytes")
    check_tensor("augment", "offsets", offsets, torch.int64, "n")
    check_tensor("augment", "sizes", sizes, torch.int32, len(offsets), 2)
    check_tensor("augment", "indices", indices, torch.int64, "B")
    check_tensor("augment", "plan", plan, torch.float64, len(indices), len(spec.plan_columns))


def largest_source_side(spec: AugmentSpec) -> int:
    """The longest side of an image from which the native kernels make every view; it asks the native library."""
    return importlib.import_module("lgfast._C").augment_largest_side(
        spec.image_size, INTERPOLATIONS.index(spec.resample)
    )


def check_source_sizes(spec: AugmentSpec, sizes: Tensor, device: torch.device) -> None:
    """Refuse images with crops that are too large for `augment` on a GPU, where it cannot say so.

    Args:
        spec: of the views.
        sizes: (n, 2) integers on CPU, height and width of each source image.
        device: where views are made; on CPU every image passes, since `augment` refuses the crops themselves.
    Raises:
        ValueError: an image is larger than a crop may be.
    """
    if device.type != "cuda" or not _extension.has_native() or len(sizes) == 0:
        return
    limit = largest_source_side(spec)
    height, width = sizes[sizes.amax(dim=1).argmax()].tolist()
    if max(height, width) > limit:
        raise ValueError(
            f"lgfast::augment: a crop of {height}x{width} is too large to reduce to {spec.image_size}; store smaller "
            f"images, of at most {limit} pixels a side"
        )


@torch.library.register_fake("lgfast::augment_plan")
def _(sizes, indices, counter, image_size, whole_image, crop_scale, crop_ratio, flip_prob, max_shift, erase_prob,
      num_ops, op_prob, magnitude, magnitude_std, magnitude_max, increasing, vertical_flip_prob=0.0, policy=0,
      jitter=()):  # fmt: skip
    num_slots = num_ops + sum(strength > 0 for strength in jitter)
    return sizes.new_empty((indices.shape[0], len(PLAN_COLUMNS) + 2 * num_slots), dtype=torch.float64)


@torch.library.register_fake("lgfast::augment")
def _(pixels, offsets, sizes, indices, plan, image_size, teacher_size, resample, erase_mode, fill, mean, std, dtype,
      channels_last):  # fmt: skip
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def allocate(size):
        shape = (indices.shape[0], 3, size, size)
        return torch.empty(shape, dtype=dtype, device=pixels.device, memory_format=memory_format)

    return allocate(image_size), allocate(teacher_size)


def _reference_plan(sizes, indices, counter, image_size, whole_image, crop_scale, crop_ratio, flip_prob, max_shift,
                    erase_prob, num_ops, op_prob, magnitude, magnitude_std, magnitude_max, increasing,
                    vertical_flip_prob=0.0, policy=0, jitter=()):  # fmt: skip
    spec = SimpleNamespace(
        image_size=image_size,
        weak=whole_image,
        crop_scale=crop_scale,
        crop_ratio=crop_ratio,
        flip_prob=flip_prob,
        vertical_flip_prob=vertical_flip_prob,
        max_shift=max_shift,
        erase_prob=erase_prob,
        policy=POLICIES[policy],
        rand_augment_policy=RandAugmentPolicy(num_ops, op_prob, magnitude, magnitude_std, magnitude_max, increasing),
        num_policy_ops=num_ops,
        jitter=tuple(jitter),
    )
    return reference_plan(spec, sizes, indices, counter)


def _reference_augment(pixels, offsets, sizes, indices, plan, image_size, teacher_size, resample, erase_mode, fill,
                       mean, std, dtype, channels_last):  # fmt: skip
    from lgfast.ops.reference.augment import apply_plan  # Pillow and timm, for this path only

    num_slots = (plan.shape[1] - len(PLAN_COLUMNS)) // 2
    spec = SimpleNamespace(
        image_size=image_size,
        teacher_size=0,
        resample=INTERPOLATIONS[resample],
        erase_mode=ERASE_MODES[erase_mode],
        fill=tuple(fill),
        mean=mean,
        std=std,
        num_slots=num_slots,
        plan_columns=plan_columns(num_slots),
    )
    images = torch.empty(len(indices), 3, image_size, image_size)
    for b, (index, row) in enumerate(zip(indices.tolist(), plan.tolist(), strict=True)):
        height, width = sizes[index].tolist()
        start = int(offsets[index])
        picture = pixels[start : start + height * width * 3].view(height, width, 3).cpu().numpy()
        images[b] = apply_plan(Image.fromarray(picture), row, spec)[0]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    images = images.to(pixels.device, dtype).contiguous(memory_format=memory_format)
    if teacher_size == 0:
        return images, images.new_empty(len(indices), 3, 0, 0)
    return images, teacher_input(images.float(), teacher_size).to(dtype).contiguous(memory_format=memory_format)


_extension.register_reference("augment_plan", _reference_plan)
_extension.register_reference("augment", _reference_augment)
