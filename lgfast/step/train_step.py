"""One optimisation step: teacher, student, loss, backward, update, meters. Nothing here reads back to the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lgfast.config import StepConfig
from lgfast.data.batch import Batch
from lgfast.guidance.student import GuidedStudent
from lgfast.guidance.teacher import TargetSource, TeacherTargets
from lgfast.optim.device_numbers import DeviceOptimizer
from lgfast.runtime import ranks
from lgfast.step.average import WeightAverage
from lgfast.step.graph import StepGraph, graph_obstacle
from lgfast.step.losses import Losses, Objective, mean_losses
from lgfast.step.meters import TrainMeter
from lgfast.step.precision import PRECISIONS


class TrainStep:
    """Callable that trains on one batch, eagerly or by replaying one CUDA graph.

    Args:
        student: the student with its taps and projections.
        teacher: None for training without one; it gives logits where they are distilled.
        optimizer: over the student's parameters, projections included.
        meter: receives the step's losses and hits.
        objective: what is minimised; None: the cross entropy.
        precision: fp32; bf16 (float32 masters, one bfloat16 copy that computes, no casts); fp16-amp (autocast with
            loss scaling).
        clip_norm: global gradient norm before the update; 0: no clipping, or the optimizer's own.
        options: graph, gradient accumulation, weight average; the others are for the makers of student and teacher.
    Raises:
        ValueError: options.graph=on where the step cannot be captured.
    """

    def __init__(
        self,
        student: GuidedStudent,
        teacher: TargetSource | None,
        optimizer: torch.optim.Optimizer,
        meter: TrainMeter,
        objective: Objective | None = None,
        *,
        precision: str = "fp32",
        clip_norm: float = 0.0,
        options: StepConfig | None = None,
    ) -> None:
        self.student, self.teacher, self.optimizer, self.meter = student, teacher, optimizer, meter
        self.objective, self.options = objective or Objective(), options or StepConfig()
        device = next(student.parameters()).device
        self.precision = PRECISIONS[precision](student, optimizer, self.options.accumulate, clip_norm)
        self.statistics = ranks.statistics(student)
        decay, warmup = self.options.ema_decay, self.options.ema_warmup
        self.average = WeightAverage(student.model, decay, warmup) if decay > 0 else None
        self.graph = self.build_graph(device)

    def build_graph(self, device: torch.device) -> StepGraph | None:
        obstacle = graph_obstacle(device, self.optimizer, self.precision, self.teacher)
        if obstacle and self.options.graph == "on":
            raise ValueError(f"step.graph: {obstacle}; use step.graph=auto or off")
        return None if obstacle or self.options.graph == "off" else StepGraph()

    def __call__(self, batch: Batch) -> None:
        if self.graph is None:
            self.run(batch)
        else:
            assert isinstance(self.optimizer, DeviceOptimizer)  # else a graph has an obstacle
            self.optimizer.send_hyperparameters()
            self.graph(self.run, batch)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which to evaluate `model`."""
        return self.precision.dtype

    @property
    def model(self) -> nn.Module:
        """The network to evaluate and to keep: the weight average where there is one."""
        return self.average.model if self.average else self.student.model

    def run(self, batch: Batch) -> None:
        """The step itself; everything it reads is on the device."""
        targets = None if self.teacher is None else self.teacher.start(batch)
        try:
            self.optimizer.zero_grad()
            results = [self.forward_backward(*part) for part in self.parts(batch, targets)]
        finally:
            if targets is not None:
                targets.wait()  # a capture ends only with every stream joined, also one that ran out of memory
        self.update()
        losses, logits = zip(*results, strict=True)
        self.meter.update(mean_losses(losses), join(logits), batch.labels)

    def parts(
        self, batch: Batch, targets: TeacherTargets | None
    ) -> Iterator[tuple[Tensor, Tensor, TeacherTargets | None]]:
        """Yield (images, labels, targets) of each forward pass: the batch, or its `accumulate` equal parts.

        The teacher has seen the whole batch, so its batch statistics do not depend on the split.
        """
        count = self.options.accumulate
        images = batch.images.chunk(count)
        if len(images) != count or len(images[0]) != len(images[-1]):
            raise ValueError(f"step.accumulate: {count} does not divide the batch of {len(batch.images)} images")
        part_targets = [None] * count if targets is None else targets.chunk(count)
        return zip(images, batch.labels.chunk(count), part_targets, strict=True)

    def forward_backward(self, images: Tensor, labels: Tensor, targets: TeacherTargets | None) -> tuple[Losses, Tensor]:
        """Compute losses and logits of one part of the batch, and add its gradients."""
        outputs, guidance = self.precision(images, targets, self.objective.guidance_weight)
        losses, logits = self.objective(outputs, guidance, labels, targets)
        count = self.options.accumulate
        self.precision.backward(losses.total if count == 1 else losses.total / count)
        return losses.detach(), logits.detach()

    def update(self) -> None:
        """Take one optimizer step, and update what follows the parameters."""
        self.precision.update()
        ranks.broadcast(self.statistics)  # so that all ranks judge and continue one model
        if self.average is not None:
            self.average.update()

    def end_guidance(self) -> None:
        """Go on without guidance, and without the teacher unless its logits are distilled. A graph is captured anew."""
        self.student.end_guidance()
        self.precision.distribute()
        if self.objective.distill.mode == "none":
            self.teacher = None
        if self.graph is not None:
            self.graph = StepGraph()

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact continuation needs beside the student's weights."""
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.precision.state_dict()}
        return state | ({"average": self.average.state_dict()} if self.average else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the student's weights are loaded before."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def join(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
