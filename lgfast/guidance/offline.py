"""Follow the paper's offline mode: compute maps of the un-augmented images once, then crop and flip them as the images.

This is an approximation, kept for parity: other operations and erasing change only the image, and a crop of a map is
not the map of a crop.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lgfast.data.batch import Batch
from lgfast.data.cache_file import UselessCacheError, append_footer, explained, map_pixels, open_cache, read_footer
from lgfast.data.epoch_loader import EpochLoader
from lgfast.data.eval_loader import EvalLoader
from lgfast.data.image_set import ImageSet, chunk_digests
from lgfast.guidance.rows import RowLayout, bring_rows, fits_device, release_rows
from lgfast.guidance.teacher import TargetSource, Teacher, TeacherOutputs, TeacherTargets
from lgfast.ops.augment import augment_plan
from lgfast.runtime.locks import Waiting, file_lock
from lgfast.runtime.shared_files import new_file, owners, remove_leftovers
from lgfast.spec.augment import PLAN_COLUMNS, AugmentSpec

BLOCK = 200  # images whose batch statistics are shared, as in the paper's code


class OfflineTeacher(TargetSource):
    """Gives stored maps of a run's images.

    Args:
        rows: [n, F], one per training image, as `stored_rows` returns them.
        layout: the rows' layout.
        loader: the run's loader; its views are drawn again here.
    Attributes:
        batches: what the run trains on: the loader, whose batches bring rows that the device cannot hold.
    """

    def __init__(self, rows: Tensor, layout: RowLayout, loader: EpochLoader) -> None:
        self.layout, self.loader = layout, loader
        self.rows = rows.to(loader.device) if fits_device(rows.nbytes, loader.device) else rows
        self.batches = bring_rows(loader, self.rows)
        self.sizes = loader.image_set.sizes.to(loader.device)
        self.counter = torch.tensor([loader.seed, 0], device=loader.device)

    def begin_epoch(self, epoch: int) -> None:
        """Move to the epoch's views."""
        num_views = self.loader.num_views
        self.counter[1] = epoch % num_views if num_views else epoch

    @torch.no_grad()
    def start(self, batch: Batch) -> TeacherTargets:
        """Return the maps of a batch's images, cropped, resized back and flipped as the images were."""
        rows = batch.teacher_rows
        if rows is None:
            rows = self.rows.index_select(0, batch.indices)
        sizes = self.sizes[batch.indices]
        plan = augment_plan(self.loader.spec, sizes, batch.indices, self.counter)
        maps = [crop_maps(maps, plan, sizes) for maps in self.layout.unpack(rows).maps]
        return TeacherTargets(TeacherOutputs(maps, None))

    def release(self) -> None:
        self.rows = self.rows.new_empty(0)
        release_rows(self.batches)

    def channels(self, image_size: int) -> list[int]:
        """Return the width of each chosen stage."""
        return [shape[0] for shape in self.layout.shapes]


def crop_maps(maps: Tensor, plan: Tensor, sizes: Tensor) -> Tensor:
    """Apply the crops and flips of a plan to feature maps.

    The box of an image's crop is scaled to the map and truncated to whole cells (at least one); what it holds is
    resized bilinearly (align_corners=False) to the size of the map.

    Args:
        maps: [B, C, h, w].
        plan: [B, P] float64, of `augment_plan`.
        sizes: [B, 2], height and width of the images.
    Returns:
        [B, C, h, w], float32 (float64 for float64 maps).
    """
    columns = dict(zip(PLAN_COLUMNS, plan.unbind(1), strict=False))
    size_y, size_x = sizes.double().unbind(1)
    ys = sampled(columns["crop_top"] / size_y, columns["crop_height"] / size_y, maps.shape[2])
    xs = sampled(columns["crop_left"] / size_x, columns["crop_width"] / size_x, maps.shape[3])
    flip = columns["flip"].long()[:, None]
    xs = torch.where((flip & 1) > 0, xs.flip(1), xs)
    ys = torch.where((flip & 2) > 0, ys.flip(1), ys)
    grid = torch.stack(torch.broadcast_tensors(xs[:, None, :], ys[:, :, None]), dim=-1)
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return F.grid_sample(maps, grid.to(maps.dtype), padding_mode="border", align_corners=False)


def sampled(start: Tensor, part: Tensor, size: int) -> Tensor:
    """Return where the cells of a resized crop lie in the map, as `grid_sample` counts: -1 and 1 are the outer edges.

    Args:
        start, part: [B] float64, where the crop begins and how long it is, as parts of the image.
        size: cells of the map.
    """
    first, length = (start * size).trunc()[:, None], (part * size).trunc().clamp(min=1)[:, None]
    cells = (torch.arange(size, device=start.device) + 0.5) * length / size - 0.5
    return (2 * (first + cells.clamp(min=0).minimum(length - 1)) + 1) / size - 1


def stored_rows(
    teacher: Teacher, images: ImageSet, spec: AugmentSpec, dtype: torch.dtype, folder: Path, device: torch.device
) -> tuple[Tensor, RowLayout]:
    """Return the maps of all images, from their file in `folder`, which is made if needed.

    The images are squashed to `spec.teacher_size` as for a test and pass in their order, in blocks of 200. Where
    several processes ask at once, one computes. The file's name identifies the images and the teacher; its footer holds
    the content's hash.

    Args:
        dtype: the stored numbers' type; they are computed in the teacher's.
    Returns:
        Memory-mapped rows [n, F] and their layout.
    """
    path = folder / f"{images.name}-{targets_key(teacher, images, spec, dtype)}.rows"
    trusted = owners(folder.parent)
    with file_lock(path.with_name(path.name + ".lock"), Waiting(f"computes the teacher's maps in {path}")):
        found = open_rows(path, dtype, len(images), trusted)
        if found is None:
            remove_leftovers(path)
            print(f"computing the teacher's maps of {len(images)} images once; they are kept in {path}", flush=True)
            write_rows(path, teacher, images, spec, dtype, device)
            found = read_rows(path, dtype, len(images), trusted)
    return found


def targets_key(teacher: Teacher, images: ImageSet, spec: AugmentSpec, dtype: torch.dtype) -> str:
    """Hash what decides the rows."""
    settings = [images.content_hash, teacher.stages, teacher.bn, spec.teacher_size, spec.mean, spec.std, BLOCK]
    settings += [] if spec.value_range == AugmentSpec().value_range else [spec.value_range]
    key = blake2b(json.dumps([*settings, str(teacher.dtype), str(dtype)]).encode(), digest_size=8)
    key.update(hash_weights(teacher.model).encode())
    return key.hexdigest()


def hash_weights(model: nn.Module) -> str:
    total = blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        total.update(f"{name}{tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@torch.no_grad()
def write_rows(
    path: Path, teacher: Teacher, images: ImageSet, spec: AugmentSpec, dtype: torch.dtype, device: torch.device
) -> None:
    """Compute and write; `path` then holds the whole file or what it held before."""
    views = replace(spec, image_size=spec.teacher_size, teacher_size=0)
    with explained(path, "the teacher's maps", "set teacher.cache"), new_file(path) as file:
        for batch in EvalLoader(images, views, batch_size=BLOCK, device=device):
            outputs = TeacherOutputs(teacher.features(batch.images), None)
            layout = RowLayout.of(outputs)
            file.write(layout.pack(outputs).to(dtype).cpu().view(torch.uint8).numpy().tobytes())
        file.flush()
        description = {"shapes": layout.shapes, "num_bytes": file.tell()}
        description["content_hash"] = hash_rows(map_pixels(file, file.tell()))
        append_footer(file, description)


def hash_rows(content: Tensor) -> str:
    return blake2b(b"".join(chunk_digests(content)), digest_size=16).hexdigest()


def read_rows(path: Path, dtype: torch.dtype, num_images: int, trusted: Collection[int]) -> tuple[Tensor, RowLayout]:
    """Read the rows of a file, and their layout.

    Args:
        trusted: the users that may own it.
    Raises:
        UselessCacheError: the file is damaged, or a stranger's.
    """
    with open_cache(path, trusted) as file:
        footer = read_footer(file)
        content = map_pixels(file, footer["num_bytes"])
        if hash_rows(content) != footer["content_hash"]:
            raise UselessCacheError("it is damaged (its content does not match its hash)")
        layout = RowLayout(tuple((int(c), int(h), int(w)) for c, h, w in footer["shapes"]), 0)
        return content.view(dtype).view(num_images, layout.num_values), layout


def open_rows(
    path: Path, dtype: torch.dtype, num_images: int, trusted: Collection[int]
) -> tuple[Tensor, RowLayout] | None:
    """Read the rows; return None where the file has to be made. A warning says why an existing file is not used."""
    try:
        return read_rows(path, dtype, num_images, trusted)
    except FileNotFoundError:
        return None
    except UselessCacheError as error:
        print(f"computing {path} again: {error}", flush=True)
        return None
