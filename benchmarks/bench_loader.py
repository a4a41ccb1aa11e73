"""Loaders on the paper's recipe (32 -> 224, RandAugment, erasing): images per second, and per core.

    python -m benchmarks.bench_loader [--providers timm,torchvision,resident] [--cores 2] [--images 256]

timm: timm's create_transform on Pillow images in a torch DataLoader, the pipeline of the paper's code.
torchvision: transforms.v2 on tensors, nearest recipe (RandAugment always applies both operations, bilinearly), a batch
at a time in this process. dali: the dali loader, decoding JPEG files first. resident: the resident loader.
One call is one epoch of the images, delivered to --device, where torchvision, dali and resident also work on them.
cores: worker processes for timm, threads for the others: 1, 2, 4, ... and --cores.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from timm.data import auto_augment, create_transform
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks import harness
from lgfast.data import ImageSet, build_train_loader, load_files
from lgfast.data.image_set import image_set_from_arrays
from lgfast.data.pillow_augment import augment_sample
from lgfast.ops import AugmentSpec

SPEC = AugmentSpec()
BATCH = 64


def real_images(count: int) -> np.ndarray:
    """32x32 windows of scikit-learn's two photographs at half size, uint8 (count, 32, 32, 3)."""
    random, photos = np.random.default_rng(0), load_sample_images().images
    corners = zip(random.integers(0, 363, count), random.integers(0, 576, count), strict=True)
    return np.stack([photos[i % 2][y : y + 64 : 2, x : x + 64 : 2] for i, (y, x) in enumerate(corners)])


def keep_bits(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm's posterize; Pillow 12 and later refuse its strongest setting, no bits at all, which gives black."""
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


class PillowImages(Dataset):
    """Images as the paper's code loads them: a Pillow image through timm's training transform."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        auto_augment.NAME_TO_OP["PosterizeIncreasing"] = keep_bits
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
    options = {"batch_size": BATCH, "shuffle": True, "drop_last": True}
    pin = device.type == "cuda"
    loader = DataLoader(PillowImages(images), num_workers=cores, persistent_workers=True, pin_memory=pin, **options)
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
            torch.stack([transform(pixels[index]) for index in indices])

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


def image_set_of(images: np.ndarray) -> ImageSet:
    return image_set_from_arrays("windows", images, [i % 2 for i in range(len(images))], ("a", "b"))


def check(images: np.ndarray, device: torch.device) -> None:
    """The resident loader's views are Pillow's."""
    batch = next(iter(build_train_loader("resident", image_set_of(images), SPEC, BATCH, seed=3, device=device)))
    for place, index in enumerate(batch.indices[:16].tolist()):
        view, _ = augment_sample(images[index], SPEC, index, seed=3, epoch=0)
        own = batch.images[place].cpu()
        torch.testing.assert_close(own, view, rtol=0, atol=1e-5)  # erase noise: two math libraries


def core_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and `cores`."""
    return sorted({2**k for k in range(cores.bit_length()) if 2**k <= cores} | {cores})


def bench(providers: list[str], num_images: int, cores: int, rounds: int, device: torch.device):
    images = real_images(num_images)
    check(images, device)
    calls = {(name, n): PROVIDERS[name](images, n, device) for name in providers for n in core_counts(cores)}
    timings = harness.time_interleaved(calls, device, rounds, warmup=1)
    for (name, n), timing in timings.items():
        images_per_s = timing.per_s(num_images // BATCH * BATCH)
        yield {
            "op": "loader",
            "provider": name,
            "mode": f"{n} cores",
            "dtype": "float32",
            "shape": f"32->224 B={BATCH}",
            **vars(timing),
            "images_per_s": images_per_s,
            "images_per_s_per_core": images_per_s and images_per_s / n,
        }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument("--providers", default="timm,torchvision,resident", help="of " + ", ".join(PROVIDERS))
    parser.add_argument("--images", type=int, default=256, help="per epoch")
    parser.add_argument("--cores", type=int, default=torch.get_num_threads(), help="measure up to so many")
    options = parser.parse_args(argv)
    device = harness.chosen_device(options)
    rows = bench(options.providers.split(","), options.images, options.cores, options.rounds, device)
    harness.record("loader", harness.survive(rows, op="loader"), device, options.out)


if __name__ == "__main__":
    main()
