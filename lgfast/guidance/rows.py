"""Keep teacher outputs for later: one row of numbers for each image, or each view of one."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgfast.data.batch import Batch, BatchStream
from lgfast.data.epoch_loader import EpochLoader
from lgfast.guidance.teacher import TeacherOutputs

LARGEST_PART = 0.5  # the largest share of what is free on the device, in host memory or on the disk
GIB = 1 << 30


@dataclass(frozen=True)
class RowLayout:
    """The layout of a row: every map, channels last and flat, then the logits."""

    shapes: tuple[tuple[int, int, int], ...]  # (C, h, w) of each map
    num_logits: int  # 0: none

    @classmethod
    def of(cls, outputs: TeacherOutputs) -> RowLayout:
        shapes = tuple((c, h, w) for _, c, h, w in (feature_map.shape for feature_map in outputs.maps))
        return cls(shapes, 0 if outputs.logits is None else outputs.logits.shape[1])

    @property
    def num_values(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes) + self.num_logits

    def pack(self, outputs: TeacherOutputs) -> Tensor:
        """Pack outputs into rows [B, num_values]."""
        parts = [feature_map.permute(0, 2, 3, 1).flatten(1) for feature_map in outputs.maps]
        return torch.cat(parts if outputs.logits is None else [*parts, outputs.logits], dim=1)

    def unpack(self, rows: Tensor) -> TeacherOutputs:
        """Return outputs as views of rows [B, num_values]; the maps are [B, C, h, w], channels last in memory."""
        sizes = [math.prod(shape) for shape in self.shapes]
        *parts, logits = rows.split([*sizes, self.num_logits], dim=1)
        maps = [
            part.unflatten(1, (h, w, c)).permute(0, 3, 1, 2) for part, (c, h, w) in zip(parts, self.shapes, strict=True)
        ]
        return TeacherOutputs(maps, logits if self.num_logits else None)


def allocate_rows(num_rows: int, num_values: int, dtype: torch.dtype, device: torch.device, folder: Path) -> Tensor:
    """Allocate a matrix, uninitialised, where it fits: on the device, else in host memory, else in a file without a
    name.

    Args:
        folder: a folder on the disk that the file may use.
    Raises:
        ValueError: the matrix fits nowhere; the message gives its size.
    """
    num_bytes = num_rows * num_values * dtype.itemsize
    folder.mkdir(parents=True, exist_ok=True)
    disk = f"the disk of {folder}"
    free = {"host memory": free_host_bytes(), disk: shutil.disk_usage(folder).free}
    if fits_device(num_bytes, device):
        return torch.empty(num_rows, num_values, dtype=dtype, device=device)
    if num_bytes <= LARGEST_PART * free["host memory"]:
        return torch.empty(num_rows, num_values, dtype=dtype)
    if num_bytes <= LARGEST_PART * free[disk]:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            flat = torch.from_file(file.name, shared=True, size=num_rows * num_values, dtype=dtype)
        return flat.view(num_rows, num_values)
    found = ", ".join(f"{num / GIB:.1f} GiB of {name}" for name, num in free.items())
    raise ValueError(
        f"teacher.targets: {num_rows} rows of teacher outputs take {num_bytes / GIB:.1f} GiB, more than half of what "
        f"is free in any one of {found}; lower data.views, or use teacher.targets=live"
    )


def fits_device(num_bytes: int, device: torch.device) -> bool:
    """Whether a GPU has room for this much."""
    return device.type == "cuda" and num_bytes <= LARGEST_PART * torch.cuda.mem_get_info(device)[0]


def free_host_bytes() -> int:
    """Return the memory that programs can still take (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return 1024 * int(kib)


class RowLoader:
    """A loader whose batches bring their rows of a matrix in host memory, sent without waiting.

    Args:
        loader: the images' loader.
        rows: [n, F] on the CPU.
        rows_per_view: the row of image i in view v is i + v times this.
    """

    def __init__(self, loader: EpochLoader, rows: Tensor, rows_per_view: int = 0) -> None:
        self.loader, self.rows_per_view = loader, rows_per_view
        self.rows: Tensor | None = rows  # None: released, and batches bring none

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        if self.rows is None:
            return iter(self.loader)
        return self.batches_with(self.rows)

    def batches_with(self, rows: Tensor) -> Iterator[Batch]:
        loader = self.loader
        steps = loader.epoch_indices(loader.index_device)[loader.next_position :].cpu()  # sync: once an epoch
        numbers = steps + loader.view_epoch * self.rows_per_view
        for own, batch in zip(numbers, loader, strict=True):
            yield batch._replace(teacher_rows=self.read(rows, own))

    def read(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """Return the rows with these numbers, on the loader's device."""
        chosen, device = rows.index_select(0, numbers), self.loader.device
        return chosen.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else chosen

    def seek(self, epoch: int, position: int = 0) -> None:
        self.loader.seek(epoch, position)

    def drop_teacher_images(self) -> None:
        self.loader.drop_teacher_images()

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)


def bring_rows(loader: EpochLoader, rows: Tensor, rows_per_view: int = 0) -> BatchStream:
    """Return the loader itself where its device holds the rows, since a step reads them there; else a `RowLoader`."""
    return loader if rows.device.type == loader.device.type else RowLoader(loader, rows, rows_per_view)


def release_rows(batches: BatchStream) -> None:
    """Free the rows that `bring_rows` gave a loader; its batches bring none from the next epoch on."""
    if isinstance(batches, RowLoader):
        batches.rows = None
