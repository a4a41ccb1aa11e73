"""Load batches with the `dali` loader: NVIDIA DALI decodes image files, `augment` makes the views.

For sets too large to keep decoded. Needs the extra [dali] (package nvidia-dali-cuda130). JPEGs are decoded by nvJPEG on
a GPU and by DALI's threads on a CPU, one batch ahead; on CPU the pixels are Pillow's. Files of other kinds, and those
that are to be turned or reduced, come from Pillow, so that all loaders give the same images.
"""

import io
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lgfast.data.ahead import ahead
from lgfast.data.batch import Batch
from lgfast.data.decode import Decoding, decode_image, exif_orientation, map_in_order, stored_size
from lgfast.data.epoch_loader import EpochLoader
from lgfast.data.file_set import FileSet, decode_error
from lgfast.data.read import read_file
from lgfast.data.resident_images import native_device
from lgfast.ops.augment import augment, augment_plan, check_source_sizes
from lgfast.runtime.cores import num_cores
from lgfast.spec.augment import AugmentSpec

BATCHES_AHEAD = 2  # the number of batches that DALI works on while the caller uses one
JPEG_START = b"\xff\xd8\xff"


def require_dali() -> None:
    """Raise a ValueError, with the fix, where DALI is not installed."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise ValueError("data.loader: dali needs NVIDIA DALI: pip install lgfast[dali]") from error


class DaliDecoder:
    """Decodes batches of encoded files in the background, some batches ahead of `take`.

    Args:
        batches: lists of encoded files, uint8 arrays; read as decoding goes on.
        batch_size: files in each list.
        threads: of DALI.
        device: where pixels are delivered; on a GPU nvJPEG decodes.
    """

    def __init__(
        self, batches: Iterator[list[np.ndarray]], batch_size: int, threads: int, device: torch.device
    ) -> None:
        from nvidia.dali import fn, pipeline_def, types

        on_gpu = device.type == "cuda"

        @pipeline_def
        def decode():
            encoded = fn.external_source(source=batches, dtype=types.UINT8, ndim=1)
            # as Pillow, whose chroma upsampling nvJPEG has on request only
            options = {"output_type": types.RGB, "adjust_orientation": False, "jpeg_fancy_upsampling": True}
            images = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", **options)
            return fn.pad(fn.reshape(images, shape=[-1]), axes=(0,)), images.shape()

        self.device = device
        self.copied: torch.cuda.Event | None = None  # the last batch, out of DALI's memory
        self.pipeline = decode(
            batch_size=batch_size,
            num_threads=threads,
            device_id=gpu_number(device) if on_gpu else None,
            prefetch_queue_depth=BATCHES_AHEAD,
        )
        self.pipeline.build()

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return pixels, offsets and sizes of the next batch, as `augment` takes them; sizes are on CPU."""
        if self.copied is not None:
            self.copied.synchronize()  # sync: a batch ago; running on gives its memory back to DALI
        padded, shapes = self.pipeline.run()  # sync: returns when the batch is decoded
        rows = to_torch(padded, torch.uint8, self.device)  # (B, bytes of the largest)
        if self.device.type == "cuda":
            self.copied = torch.cuda.current_stream(self.device).record_event()
        sizes = to_torch(shapes, torch.int64, torch.device("cpu"))[:, :2].to(torch.int32).contiguous()
        offsets = torch.arange(len(rows), device=self.device) * rows.shape[1]
        return rows.flatten(), offsets, sizes

    def close(self) -> None:
        """Wait until nothing reads DALI's memory, and free the pipeline."""
        if self.copied is not None:
            self.copied.synchronize()  # sync: once, at the end
        del self.pipeline


def gpu_number(device: torch.device) -> int:
    """Return the number of a GPU; plain `cuda` is the current one, which a rank has chosen."""
    return torch.cuda.current_device() if device.index is None else device.index


def to_torch(outputs, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy a uniform DALI output on the current stream."""
    from nvidia.dali.plugin.pytorch import feed_ndarray

    dense = outputs.as_tensor()
    result = torch.empty(dense.shape(), dtype=dtype, device=device)
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    return feed_ndarray(dense, result, cuda_stream=stream)


class DaliLoader(EpochLoader[FileSet]):
    """Training batches from image files; arguments as `EpochLoader`, with a FileSet for the images.

    workers: DALI's decoding threads; 0: one per core.
    Raises:
        ValueError: the images are not a FileSet; DALI is not installed; or, while iterating, a file cannot be decoded:
            the message names it.
        UnreadableError: while iterating, a file cannot be read.
    """

    def __init__(self, image_set: FileSet, spec: AugmentSpec, *, workers: int = 0, **kwargs) -> None:
        if not isinstance(image_set, FileSet):
            raise ValueError(
                f"the dali loader reads image files: pass load_files(...), got {type(image_set).__name__}; "
                "the resident loader takes decoded images"
            )
        require_dali()
        super().__init__(image_set, spec, **kwargs)
        self.threads = workers or num_cores()

    def views(self, steps: Tensor, epoch: int) -> Iterator[Batch]:
        device = native_device(self.device)
        if len(steps) == 0:
            return
        read: deque[Tensor] = deque()  # batches that DALI has been given and that are not delivered yet
        decoder = DaliDecoder(self.read_batches(steps, read), steps.shape[1], self.threads, device)
        counter = torch.tensor([self.seed, epoch], device=device)

        def make(indices: Tensor) -> Batch:
            try:
                pixels, offsets, sizes = decoder.take()
            except RuntimeError as error:
                raise ValueError(self.explain(read, error)) from error
            read.popleft()
            check_source_sizes(self.spec, sizes, device)
            on_device, sizes = indices.to(device), sizes.to(device)
            plan = augment_plan(self.spec, sizes, on_device, counter)
            rows = torch.arange(len(indices), device=device)
            views = augment(pixels, offsets, sizes, rows, plan, self.spec, self.dtype)
            return Batch(*views, self.image_set.labels[indices].to(device), on_device)

        try:
            for batch in ahead(steps, make, device):
                yield batch.to(self.device)
        finally:  # also where the caller stops early
            decoder.close()

    def read_batches(self, steps: Tensor, read: deque[Tensor]) -> Iterator[list[np.ndarray]]:
        files = self.image_set
        encode = partial(encode_for_dali, decoding=files.decoding)
        for indices in steps:
            read.append(indices)
            yield list(map_in_order(encode, [files.paths[index] for index in indices.tolist()], self.threads))

    def explain(self, read: deque[Tensor], error: RuntimeError) -> str:
        """Find the file on which DALI failed, which DALI does not tell."""
        files = self.image_set
        errors = (decode_error(files.paths[index], files.decoding) for indices in read for index in indices.tolist())
        return next(filter(None, errors), f"DALI cannot decode a file, though Pillow can: {error}")


def encode_for_dali(path: Path, decoding: Decoding) -> np.ndarray:
    """Return what DALI decodes to the pixels of `decode_image`: the file's own bytes, or those pixels as a PPM.

    Raises:
        ValueError: the file is broken, as far as has to be seen here; the message names it.
    """
    encoded = read_file(path)
    if not is_plain_jpeg(encoded, decoding):
        pixels = decode_image(path, decoding)
        encoded = b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
    return np.frombuffer(encoded, dtype=np.uint8)


def is_plain_jpeg(encoded: bytes, decoding: Decoding) -> bool:
    """Whether a file is a JPEG, grey or in colour, of which `decoding` changes nothing and refuses nothing."""
    if not encoded.startswith(JPEG_START):
        return False
    try:
        with Image.open(io.BytesIO(encoded), formats=["JPEG"]) as image:
            (width, height), is_turned = image.size, decoding.exif_orientation and exif_orientation(image) != 1
            is_changed = is_turned or stored_size(image.size, decoding.stored_side) is not None
            is_refused = width * height > decoding.max_pixels or 0 < decoding.max_side < max(width, height)
            return image.mode in ("RGB", "L") and not is_changed and not is_refused
    except Exception:  # `decode_image` says what is wrong
        return False
