"""One optimisation step: teacher, student, loss, backward, update, meters. Nothing here reads back to the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lgfast.data.batch import Batch
from lgfast.guidance.teacher import Teacher
from lgfast.metrics import TrainMeter

AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16-amp": torch.float16}


class TrainStep:
    """Callable that trains on one batch.

    Args:
        student: a `GuidedStudent`, or a wrapper of one (DistributedDataParallel, torch.compile).
        teacher: None for training without guidance.
        optimizer: over the student's parameters, projections included.
        meter: receives the step's losses and hits.
        guidance_weight: factor of the guidance loss (the paper's beta, 2.5).
        precision: fp32, bf16 (autocast) or fp16-amp (autocast with loss scaling).
        label_smoothing: of the cross entropy.
        clip_norm: global gradient norm; 0 for no clipping.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | None,
        optimizer: torch.optim.Optimizer,
        meter: TrainMeter,
        *,
        guidance_weight: float = 0.0,
        precision: str = "fp32",
        label_smoothing: float = 0.0,
        clip_norm: float = 0.0,
    ) -> None:
        self.student, self.teacher, self.optimizer, self.meter = student, teacher, optimizer, meter
        device = next(student.parameters()).device
        self.guidance_weight = torch.tensor(guidance_weight, device=device)
        self.label_smoothing, self.clip_norm = label_smoothing, clip_norm
        self.autocast = autocast_context(device, AUTOCAST_DTYPES[precision])
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16-amp")

    def __call__(self, batch: Batch) -> None:
        targets = None
        if self.teacher is not None:
            with self.autocast():
                targets = self.teacher.start(batch.teacher_images)
        with self.autocast():
            logits, guidance_loss = self.student(batch.images, targets)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        cls_loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        loss = cls_loss if guidance_loss is None else cls_loss + self.guidance_weight * guidance_loss
        self.update(loss)
        self.meter.update(loss, cls_loss, guidance_loss, logits, batch.labels)

    def update(self, loss: Tensor) -> None:
        """Backward and one optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.student.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def autocast_context(
    device: torch.device, dtype: torch.dtype | None
) -> Callable[[], contextlib.AbstractContextManager]:
    """Factory of autocast contexts; of empty ones for float32."""
    if dtype is None:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype)
