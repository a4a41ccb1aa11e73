"""Teacher outputs kept for later: one row of numbers per image (or per view of one)."""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lgfast.guidance.teacher import TeacherOutputs

LARGEST_PART = 0.5  # of what is free in one place
GIB = 1 << 30


@dataclass(frozen=True)
class RowLayout:
    """What a row holds: every map, channels last and flat, then the logits."""

    shapes: tuple[tuple[int, int, int], ...]  # (C, h, w) of each map
    num_logits: int  # 0: none

    @classmethod
    def of(cls, outputs: TeacherOutputs) -> RowLayout:
        logits = outputs.logits
        return cls(tuple(tuple(m.shape[1:]) for m in outputs.maps), 0 if logits is None else logits.shape[1])

    @property
    def num_values(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes) + self.num_logits

    def pack(self, outputs: TeacherOutputs) -> Tensor:
        """[B, num_values]."""
        parts = [feature_map.permute(0, 2, 3, 1).flatten(1) for feature_map in outputs.maps]
        return torch.cat(parts if outputs.logits is None else [*parts, outputs.logits], dim=1)

    def unpack(self, rows: Tensor) -> TeacherOutputs:
        """Views of rows [B, num_values]; the maps are [B, C, h, w], channels last in memory."""
        sizes = [math.prod(shape) for shape in self.shapes]
        *parts, logits = rows.split([*sizes, self.num_logits], dim=1)
        maps = [
            part.unflatten(1, (h, w, c)).permute(0, 3, 1, 2) for part, (c, h, w) in zip(parts, self.shapes, strict=True)
        ]
        return TeacherOutputs(maps, logits if self.num_logits else None)


def allocate_rows(num_rows: int, num_values: int, dtype: torch.dtype, device: torch.device, folder: Path) -> Tensor:
    """An uninitialised matrix where it fits: on the device, else in host memory, else in a file without a name.

    Args:
        folder: on the disk that the file may take space of.
    Raises:
        ValueError: it fits nowhere; the message states its size.
    """
    num_bytes = num_rows * num_values * dtype.itemsize
    folder.mkdir(parents=True, exist_ok=True)
    places = {"host memory": free_host_bytes(), f"the disk of {folder}": shutil.disk_usage(folder).free}
    if fits_device(num_bytes, device):
        return torch.empty(num_rows, num_values, dtype=dtype, device=device)
    if num_bytes <= LARGEST_PART * places["host memory"]:
        return torch.empty(num_rows, num_values, dtype=dtype)
    if num_bytes <= LARGEST_PART * places[f"the disk of {folder}"]:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            flat = torch.from_file(file.name, shared=True, size=num_rows * num_values, dtype=dtype)
        return flat.view(num_rows, num_values)
    free = ", ".join(f"{num / GIB:.1f} GiB of {place}" for place, num in places.items())
    raise ValueError(
        f"teacher.targets: {num_rows} rows of teacher outputs take {num_bytes / GIB:.1f} GiB, at most half of what is "
        f"free in one place may be used, and free are {free}; lower data.views, or use teacher.targets=live"
    )


def fits_device(num_bytes: int, device: torch.device) -> bool:
    """Whether a GPU may hold this much."""
    return device.type == "cuda" and num_bytes <= LARGEST_PART * torch.cuda.mem_get_info(device)[0]


def free_host_bytes() -> int:
    """Memory that programs can still take (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return 1024 * int(kib)


def read_host_rows(rows: Tensor, places: Tensor, device: torch.device) -> Tensor:
    """Rows of a matrix in host memory, sent to the device without waiting.

    Args:
        places: int64 [B] on the CPU.
    """
    chosen = rows.index_select(0, places)
    return chosen.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else chosen
