"""Time the augment op alone: from uint8 images in memory to a batch of the paper's recipe.

    python -m benchmarks.bench_augment [--providers lgfast,torchvision,pillow] [--batches 128,512]

Providers:

    lgfast        augment_plan and augment on the images' device, with the teacher's input
    torchvision   transforms.v2 on the same device, nearest recipe; image by image, since a call draws once for all
    pillow        timm's pipeline on one core, float32

images_per_s: batch / median time. copy_share: the bytes of the uint8 source, read once, and of both results, written
once, over the median time, as a share of a device copy. On a GPU up to a millisecond of the host's time is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import ceilings, harness, row_file
from lgfast.data.pillow_augment import augment_sample
from lgfast.ops import AugmentSpec, augment, augment_plan

SPEC = AugmentSpec()
SIDE = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_images(count: int) -> np.ndarray:
    """Make smooth random images, uint8 (count, 32, 32, 3): neighbours are alike, as in photographs."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.BICUBIC)) for image in coarse])


class Source:
    """A batch of images, in the form that each provider takes."""

    def __init__(self, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        self.images, self.device, self.dtype = random_images(batch), device, dtype
        self.pixels = torch.from_numpy(self.images).flatten().to(device)
        self.offsets = torch.arange(batch, device=device) * (3 * SIDE * SIDE)
        self.sizes = torch.full((batch, 2), SIDE, dtype=torch.int32, device=device)
        self.indices = torch.arange(batch, device=device)
        self.counter = torch.tensor([0, 0], device=device)  # seed, epoch

    def augmented(self) -> tuple[Tensor, Tensor | None]:
        plan = augment_plan(SPEC, self.sizes, self.indices, self.counter)
        return augment(self.pixels, self.offsets, self.sizes, self.indices, plan, SPEC, self.dtype)

    def num_bytes(self) -> int:
        """Count the bytes of the source, read once, and of both results, written once."""
        values = 3 * (SPEC.image_size**2 + SPEC.teacher_size**2)
        return self.images.nbytes + len(self.images) * values * self.dtype.itemsize


def torchvision_call(source: Source) -> Callable[[], object]:
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SPEC.image_size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(2, 9, interpolation=v2.InterpolationMode.BILINEAR, fill=list(SPEC.fill)),
            v2.ToDtype(source.dtype, scale=True),
            v2.Normalize(SPEC.mean, SPEC.std),
            v2.RandomErasing(SPEC.erase_prob),
        ]
    )
    pixels = torch.from_numpy(source.images).permute(0, 3, 1, 2).contiguous().to(source.device)
    return lambda: torch.stack([transform(image) for image in pixels])


def pillow_call(source: Source) -> Callable[[], object]:
    return lambda: [augment_sample(image, SPEC, i, seed=0, epoch=0) for i, image in enumerate(source.images)]


PROVIDERS: dict[str, Callable[[Source], Callable[[], object]]] = {
    "lgfast": lambda source: source.augmented,
    "torchvision": torchvision_call,
    "pillow": pillow_call,
}


def check(source: Source) -> None:
    """Check that the first views are Pillow's, up to the dtype and the noise of erased rectangles.

    That noise comes from two math libraries.
    """
    views = source.augmented()[0]
    for index in range(min(8, len(views))):
        view, _ = augment_sample(source.images[index], SPEC, index, seed=0, epoch=0)
        bound = 1e-5 + torch.finfo(source.dtype).eps * view.abs().max().item()
        torch.testing.assert_close(views[index].float().cpu(), view, rtol=0, atol=bound)


def bench(
    batch: int, providers: Sequence[str], dtype: str, device: torch.device, rounds: int, limits: ceilings.Ceilings
) -> Iterator[dict]:
    source = Source(batch, device, DTYPES[dtype])
    check(source)
    calls = {provider: PROVIDERS[provider](source) for provider in providers}
    peers = set(calls) - {"lgfast"}
    for provider, timing in harness.time_interleaved(calls, device, rounds, 2, fragile=peers, queued=True).items():
        yield {
            "op": "augment",
            "provider": provider,
            "mode": "",
            "dtype": "float32" if provider == "pillow" else dtype,
            "shape": f"{SIDE}->{SPEC.image_size} B={batch}",
            **vars(timing),
            "images_per_s": timing.per_s(batch),
            **limits.shares(timing, source.num_bytes() if provider == "lgfast" else None),
        }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=10)
    harness.add_names(parser, "--providers", PROVIDERS)
    parser.add_argument("--batches", type=harness.counts, default="128", help="comma-separated; default 128")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on CUDA, float32 on CPU")
    options = parser.parse_args(argv)
    device = harness.chosen_device(options)
    limits = ceilings.load(options.ceilings, device)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    rows = (
        row
        for batch in options.batches
        for row in harness.survive(
            bench(batch, options.providers, dtype, device, options.rounds, limits),
            op="augment",
            shape=f"{SIDE}->{SPEC.image_size} B={batch}",
        )
    )
    row_file.record("augment", rows, device, options.out)


if __name__ == "__main__":
    main()
