"""Time loaders on the paper's recipe (32 -> 224, RandAugment, erasing): images per second, and per core.

    python -m benchmarks.bench_loader [--device cuda] [--providers timm,torchvision,dali,resident] [--cores 2]

Providers:

    timm          timm's create_transform on Pillow images in a torch DataLoader, the pipeline of the paper's code; on
                  a GPU its batches are pinned and copied there
    torchvision   transforms.v2 on tensors on the device, nearest recipe (RandAugment always applies both operations,
                  bilinearly), an image at a time in this process
    dali          the dali loader, which first decodes JPEG files (nvJPEG on a GPU); left out where it is not installed
    resident      the resident loader

One call is one epoch of the images. cores: 1, 2, 4, ... up to --cores. timm uses as many worker processes, the others
as many threads; on a GPU torchvision and resident use one. times_timm: images per second over timm's on as many cores.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import auto_augment, create_transform
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks import harness, row_file
from lgfast.data import ImageSet, build_train_loader, load_files
from lgfast.data.image_set import image_set_from_arrays
from lgfast.data.pillow_augment import augment_sample
from lgfast.ops import AugmentSpec

SPEC = AugmentSpec()
BATCH = 64


def real_images(count: int) -> np.ndarray:
    """Cut 32x32 windows from scikit-learn's two photographs at half size, uint8 (count, 32, 32, 3)."""
    random, photos = np.random.default_rng(0), load_sample_images().images
    corners = zip(random.integers(0, 363, count), random.integers(0, 576, count), strict=True)
    return np.stack([photos[i % 2][y : y + 64 : 2, x : x + 64 : 2] for i, (y, x) in enumerate(corners)])


def posterize(image: Image.Image, bits: int, **options) -> Image.Image:
    """Posterize as timm does, with black for 0 bits, as Pillow did before it refused 0."""
    return Image.new("RGB", image.size) if bits <= 0 else auto_augment.posterize(image, bits, **options)


class PillowImages(Dataset):
    """Images as the paper's code loads them: Pillow images through timm's training transform."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize
        self.transform = create_transform(
            SPEC.image_size,
            is_training=True,
            color_jitter=0.4,
            auto_augment=SPEC.rand_augment,
            interpolation=SPEC.interpolation,
            re_prob=SPEC.erase_prob,
            re_mode=SPEC.erase_mode,
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), index


def timm_epoch(images: np.ndarray, cores: int, device: torch.device) -> Callable[[], object]:
    options = {"batch_size": BATCH, "shuffle": True, "drop_last": True, "pin_memory": device.type == "cuda"}
    loader = DataLoader(PillowImages(images), num_workers=cores, persistent_workers=True, **options)
    return lambda: sum(len(batch.to(device, non_blocking=True)) for batch, _ in loader)


def torchvision_epoch(images: np.ndarray, cores: int, device: torch.device) -> Callable[[], object]:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
    bicubic = v2.InterpolationMode.BICUBIC
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SPEC.image_size, interpolation=bicubic, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(2, 9, interpolation=v2.InterpolationMode.BILINEAR, fill=list(SPEC.fill)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(SPEC.mean, SPEC.std),
            v2.RandomErasing(SPEC.erase_prob),
        ]
    )

    def epoch():
        torch.set_num_threads(cores)
        for indices in torch.randperm(len(pixels)).split(BATCH):
            torch.stack([transform(pixels[index]) for index in indices.tolist()])

    return epoch


def resident_epoch(images: np.ndarray, cores: int, device: torch.device) -> Callable[[], object]:
    loader = build_train_loader("resident", image_set_of(images), SPEC, BATCH, device=device)

    def epoch():
        torch.set_num_threads(cores)
        return sum(len(batch.images) for batch in loader)

    return epoch


def dali_epoch(images: np.ndarray, cores: int, device: torch.device) -> Callable[[], object]:
    folder = tempfile.TemporaryDirectory()  # deleted with the closure below
    for number, image in enumerate(images):
        path = Path(folder.name) / "train" / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=95)
    files = load_files("folder", folder.name)
    loader = build_train_loader("dali", files, SPEC, BATCH, workers=cores, device=device)

    def epoch(folder=folder):
        torch.set_num_threads(cores)
        return sum(len(batch.images) for batch in loader)

    return epoch


PROVIDERS = {"timm": timm_epoch, "torchvision": torchvision_epoch, "dali": dali_epoch, "resident": resident_epoch}
ON_DEVICE = ("torchvision", "resident")  # on a GPU they work there, whatever the number of cores


def default_providers() -> str:
    has_dali = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
    return ",".join(name for name in PROVIDERS if name != "dali" or has_dali)


def image_set_of(images: np.ndarray) -> ImageSet:
    return image_set_from_arrays("windows", images, [i % 2 for i in range(len(images))], ("a", "b"))


def check(images: np.ndarray, device: torch.device) -> None:
    """Check that the resident loader's views are Pillow's."""
    batch = next(iter(build_train_loader("resident", image_set_of(images), SPEC, BATCH, seed=3, device=device)))
    for place, index in enumerate(batch.indices[:16].tolist()):
        view, _ = augment_sample(images[index], SPEC, index, seed=3, epoch=0)
        own = batch.images[place].cpu()
        torch.testing.assert_close(own, view, rtol=0, atol=1e-5)  # the noise of erasing: two math libraries


def core_counts(name: str, cores: int, device: torch.device) -> list[int]:
    """Return 1, 2, 4, ... and `cores`; only 1 where the number of cores does not matter."""
    if device.type == "cuda" and name in ON_DEVICE:
        return [1]
    return sorted({cores, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)})


def bench(
    providers: list[str], num_images: int, cores: int, rounds: int, device: torch.device
) -> Iterator[dict[str, object]]:
    images = real_images(num_images)
    check(images, device)
    counts = [(name, n) for name in providers for n in core_counts(name, cores, device)]
    peers = [key for key in counts if key[0] != "resident"]
    makes = {(name, n): partial(PROVIDERS[name], images, n, device) for name, n in counts}
    calls = {key: harness.ready(make, fragile=key in peers) for key, make in makes.items()}
    timings = harness.time_interleaved(calls, device, rounds, warmup=1, fragile=peers)
    rates = {key: timing.per_s(num_images // BATCH * BATCH) for key, timing in timings.items()}
    for (name, n), timing in timings.items():
        rate, timms = rates[name, n], rates.get(("timm", n))
        yield {
            "op": "loader",
            "provider": name,
            "mode": f"{n} cores",
            "dtype": "float32",
            "shape": f"32->224 B={BATCH}",
            **vars(timing),
            "images_per_s": rate,
            "images_per_s_per_core": rate and rate / n,
            "times_timm": rate / timms if rate and timms else None,
        }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=5)
    harness.add_names(parser, "--providers", PROVIDERS, default_providers())
    parser.add_argument("--images", type=harness.count, default=256, help="per epoch; default 256")
    parser.add_argument(
        "--cores",
        type=harness.count,
        default=torch.get_num_threads(),
        help="measure 1, 2, 4, ... up to so many; default: torch's threads",
    )
    options = parser.parse_args(argv)
    device = harness.chosen_device(options)
    rows = bench(options.providers, options.images, options.cores, options.rounds, device)
    row_file.record("loader", harness.survive(rows, op="loader"), device, options.out)


if __name__ == "__main__":
    main()
