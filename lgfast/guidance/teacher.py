"""Run the frozen CNN teacher without gradients, on its own CUDA stream."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lgfast.data.ahead import STEP_PRIORITY
from lgfast.data.batch import Batch
from lgfast.guidance.synced_norm import use_synced_statistics
from lgfast.runtime.compilation import compile_once


class TeacherOutputs(NamedTuple):
    """The outputs of a teacher for some images."""

    maps: list[Tensor]  # [B, C, h, w] of each chosen stage
    logits: Tensor | None  # [B, K]; None where nobody asked for them

    def tensors(self) -> list[Tensor]:
        """Return the maps, and the logits where there are any."""
        return self.maps if self.logits is None else [*self.maps, self.logits]

    def each(self, function: Callable[[Tensor], Tensor]) -> TeacherOutputs:
        """Return the outputs with `function` applied to every tensor."""
        logits = None if self.logits is None else function(self.logits)
        return TeacherOutputs([function(feature_map) for feature_map in self.maps], logits)


class TeacherTargets:
    """Outputs that may still be computing; `wait` orders the current stream after them."""

    def __init__(self, outputs: TeacherOutputs, done: torch.cuda.Event | None = None) -> None:
        self._outputs = outputs
        self._done = done

    def wait(self) -> TeacherOutputs:
        # Memory needs no record_stream: the teacher's stream waits for the student's before it starts again.
        if self._done is not None:
            torch.cuda.current_stream().wait_event(self._done)
        return self._outputs

    def chunk(self, count: int) -> list[TeacherTargets]:
        """Split the targets into those of `count` equal parts of the batch."""
        maps, logits = self._outputs
        parts = zip(*(feature_map.chunk(count) for feature_map in maps), strict=True)
        logit_parts = [None] * count if logits is None else logits.chunk(count)
        return [
            TeacherTargets(TeacherOutputs(list(part), logit_part), self._done)
            for part, logit_part in zip(parts, logit_parts, strict=True)
        ]


class TargetSource:
    """Gives a step its targets: a `Teacher`, or a stand-in (stored maps, cached views, a group's shared teacher)."""

    exchanges = False  # whether the ranks' sources exchange anything when they start

    def begin_epoch(self, epoch: int) -> None:
        """Move to the views of an epoch."""

    def prepare(self, batch: Batch) -> None:
        """Do what is done once for all students, before their steps on a batch."""

    def start(self, batch: Batch) -> TeacherTargets:
        """Return the targets of a batch, within a step."""
        raise NotImplementedError  # abstract: every source has its own

    def channels(self, image_size: int) -> list[int]:
        """Return the width of each map, for a teacher's input of this size."""
        raise NotImplementedError  # abstract: every source has its own

    def release(self) -> None:
        """Free the memory; nobody may ask for targets any more."""


class Teacher(TargetSource):
    """Runs a CNN's stages on the images that the student sees.

    Args:
        model: CNN with timm's `forward_intermediates`. Its parameters are frozen and its buffers never change.
        stages: indices of the stages to return, in any order; negative ones count from the end.
        bn: "batch" normalises with the statistics of the current batch, which is what the paper's code does (its
            trainer puts the whole wrapper, teacher included, in train mode), each rank with its own; "synced" with
            those of all ranks' batches together; "running" uses the trained statistics, folded into the convolutions.
        dtype: the type to compute in; None: the model's.
        autocast: run under torch.autocast to this type; None: without.
        concurrent: on CUDA, run on a stream beside the student's.
        gives_logits: run the classifier too, for distillation.
        compiled: run under torch.compile. Equal to rounding; the first batch of a shape waits for the compiler.
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Sequence[int] = (0, 1, 2),
        bn: Literal["batch", "synced", "running"] = "batch",
        *,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
        concurrent: bool = True,
        gives_logits: bool = False,
        compiled: bool = False,
    ) -> None:
        if bn not in ("batch", "synced", "running"):
            raise ValueError(f"teacher.bn: expected batch, synced or running, got {bn!r}")
        model = model.eval().requires_grad_(False)
        count = len(model.feature_info)
        self.exchanges = bn == "synced"
        self.stages, self.bn, self.gives_logits = [stage % count for stage in stages], bn, gives_logits
        if bn == "batch":
            use_batch_statistics(model)
        elif bn == "synced":
            use_synced_statistics(model)
        else:
            model = fold_batch_norm(model)
        # channels_last is what feature_mse reads without a copy, and what tensor cores convolve.
        self.model = model.to(dtype=dtype, memory_format=torch.channels_last)
        device = next(model.parameters()).device
        self._stream = teacher_stream(device) if concurrent and device.type == "cuda" else None
        self._autocast = partial(torch.autocast, device.type, autocast) if autocast else contextlib.nullcontext
        self._find_outputs = compile_once(find_outputs) if compiled else find_outputs

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @torch.no_grad()
    def outputs(self, images: Tensor) -> TeacherOutputs:
        """Compute maps of the chosen stages, and logits where they are wanted, on the current stream.

        Args:
            images: [B, C, s, s].
        """
        images = images.to(dtype=self.dtype, memory_format=torch.channels_last)
        with self._autocast():
            return TeacherOutputs(*self._find_outputs(self.model, images, self.stages, self.gives_logits))

    def features(self, images: Tensor) -> list[Tensor]:
        """Compute only the maps of `outputs`."""
        return self.outputs(images).maps

    def start(self, batch: Batch) -> TeacherTargets:
        """Enqueue the teacher on a batch's `teacher_images`, beside the student; on CUDA the call returns at once."""
        if self._stream is None:
            return TeacherTargets(self.outputs(batch.need_teacher_images()))
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outputs = self.outputs(batch.need_teacher_images())
            done = self._stream.record_event()
        return TeacherTargets(outputs, done)

    def release(self) -> None:
        self.model = nn.Identity()

    @torch.no_grad()
    def example(self, image_size: int) -> TeacherOutputs:
        """Compute outputs for two images, uncompiled, which show shapes and types."""
        weight = next(self.model.parameters())
        images = torch.zeros(
            2, getattr(self.model, "in_chans", 3), image_size, image_size, device=weight.device, dtype=weight.dtype
        )
        with self._autocast():
            return TeacherOutputs(*find_outputs(self.model, images, self.stages, self.gives_logits))

    def channels(self, image_size: int) -> list[int]:
        """Width of each chosen stage."""
        return [feature_map.shape[1] for feature_map in self.example(image_size).maps]


def find_outputs(
    model: nn.Module, images: Tensor, stages: list[int], gives_logits: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Compute maps of the stages, and logits where they are asked for."""
    levels = sorted(set(stages))  # timm gives each level once, in the order of the network
    forward = partial(model.forward_intermediates, images, indices=levels, output_fmt="NCHW")
    if not gives_logits:
        maps, logits = forward(intermediates_only=True), None
    else:
        last, maps = forward()
        logits = model.forward_head(last)
    return [maps[levels.index(stage)] for stage in stages], logits


@functools.cache
def teacher_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of every teacher of this process: torch has 32 streams, and reuses freed memory only within
    one."""
    return torch.cuda.Stream(device, priority=STEP_PRIORITY)


def use_batch_statistics(model: nn.Module) -> None:
    """Make every BatchNorm normalise with the current batch, whatever the mode, leaving its trained buffers alone."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Without running statistics a BatchNorm uses the batch in eval mode too, and updates nothing.
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Copy the model with every BatchNorm2d that follows its convolution folded into it; for evaluation mode.

    A pair is two neighbours in definition order, which is the order of use in ResNets.
    """
    model = copy.deepcopy(model)
    for parent in model.modules():
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d and norm.track_running_stats:
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return model
