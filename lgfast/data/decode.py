"""Decoding image files to uint8 RGB on all cores, in order, with progress."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lgfast.runtime.cores import num_cores

SECONDS_BETWEEN_LINES = 10.0
RESULTS_PER_WORKER = 8  # decoded images that may wait for the writer


def decode_image(path: Path) -> np.ndarray:
    """The image as uint8 [h, w, 3]; 16-bit grey is scaled to 8 bits, an EXIF orientation is not applied.

    Raises:
        ValueError: the file cannot be read or decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: cannot be decoded ({error}); replace the file, or leave such out with data.skip_broken"
        ) from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels as uint8 [h, w, 3], by Pillow's conversion where it keeps the values' meaning.

    Raises:
        ValueError: pixels of 32 bits, which have no range to scale from.
    """
    if image.mode.startswith("I;16"):  # Pillow would clip at 255
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 -> 255, rounded
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: 32-bit pixels have no known range, store them in 8 or 16 bits")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def map_in_order(function: Callable, items: Iterable, num_workers: int | None = None) -> Iterator:
    """`function(item)` for every item on a thread pool, results in order, few of them in memory at a time.

    Threads suffice: Pillow decodes outside the GIL.
    """
    num_workers = num_workers or num_cores()
    waiting: deque = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= RESULTS_PER_WORKER * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def show_progress(items: Iterable, total: int, label: str) -> Iterator:
    """A bar on a terminal; elsewhere one line now and then, so that log files stay readable."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=label, unit="image")
        return
    last_line = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            print(f"{label}: {done} of {total}", file=sys.stderr, flush=True)
