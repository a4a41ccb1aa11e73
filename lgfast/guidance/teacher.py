"""The frozen CNN teacher, run without gradients on its own CUDA stream. The only file that touches events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class TeacherTargets:
    """Feature maps that may still be computing; `wait` orders the current stream after them."""

    def __init__(self, maps: list[Tensor], done: torch.cuda.Event | None = None) -> None:
        self._maps = maps
        self._done = done

    def wait(self) -> list[Tensor]:
        if self._done is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)
            for feature_map in self._maps:
                feature_map.record_stream(stream)
        return self._maps


class Teacher:
    """Runs a CNN's stages on the images that the student sees.

    Args:
        model: CNN with timm's `forward_intermediates`. Its parameters are frozen and its buffers never change.
        stages: indices of the stages to return.
        bn: "batch" normalises with the statistics of the current batch, which is what the paper's code does (its
            trainer puts the whole wrapper, teacher included, in train mode); "running" uses the trained statistics.
    """

    def __init__(
        self, model: nn.Module, stages: Sequence[int] = (0, 1, 2), bn: Literal["batch", "running"] = "batch"
    ) -> None:
        if bn not in ("batch", "running"):
            raise ValueError(f"teacher.bn: expected batch or running, got {bn!r}")
        self.model = model.eval().requires_grad_(False)
        self.stages = list(stages)
        if bn == "batch":
            use_batch_statistics(self.model)
        device = next(model.parameters()).device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """Maps [B, C, h, w] of the chosen stages, computed on the current stream. The classifier is not run."""
        return self.model.forward_intermediates(images, indices=self.stages, output_fmt="NCHW", intermediates_only=True)

    def start(self, images: Tensor) -> TeacherTargets:
        """Enqueue the teacher beside the student; returns at once on CUDA.

        Args:
            images: [B, 3, s, s], ready on the current stream.
        """
        if self._stream is None:
            return TeacherTargets(self.features(images))
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            maps = self.features(images)
            images.record_stream(self._stream)
            done = self._stream.record_event()
        return TeacherTargets(maps, done)

    def channels(self, image_size: int) -> list[int]:
        """Width of each chosen stage."""
        parameter = next(self.model.parameters())
        images = torch.zeros(2, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
        return [feature_map.shape[1] for feature_map in self.features(images)]


def use_batch_statistics(model: nn.Module) -> None:
    """Make every BatchNorm normalise with the current batch, whatever the mode, leaving its trained buffers alone."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Without running statistics a BatchNorm uses the batch in eval mode too, and updates nothing.
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
