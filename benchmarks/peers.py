"""Guided training steps as users of plain PyTorch write them, to measure the trainer against.

Each peer is a callable (images, teacher_images, labels) -> loss tensor that trains its own copy of the networks.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cuda_calls import captured
from lgfast.guidance import GuidedStudent
from lgfast.optim.build import param_groups

LR, WEIGHT_DECAY, GUIDANCE_WEIGHT = 5e-4, 0.05, 2.5


class PaperStep:
    """The step of the paper's code: float32, one launch per operation, losses read back in every step.

    Hooks copy the output of every block. The whole teacher runs in train mode, with its classifier. Both maps of a pair
    are resized separately. AdamW walks over the parameters one by one. Six numbers are logged through `.item()`.
    """

    read_back = True

    def __init__(
        self, student: GuidedStudent, teacher: nn.Module | None, layers: tuple[int, ...], precision: str
    ) -> None:
        self.model, self.precision = copy.deepcopy(student.model), precision
        self.is_cuda = next(self.model.parameters()).is_cuda
        self.teacher = None if teacher is None else copy.deepcopy(teacher).train()
        self.layers, self.tokens, self.maps = layers, [], []
        self.projections = nn.ModuleList()
        if self.teacher is not None:
            for linear in student.guidance.projections:
                conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
                conv.weight.data.copy_(linear.weight[:, :, None, None])
                conv.bias.data.copy_(linear.bias)
                self.projections.append(conv.to(linear.weight.device))
            for block in self.model.blocks:
                block.register_forward_hook(lambda module, args, output: self.tokens.append(output.contiguous()))
            for name in ("layer1", "layer2", "layer3"):
                stage = getattr(self.teacher, name)
                stage.register_forward_hook(lambda module, args, output: self.maps.append(output.contiguous()))
        named = [*self.model.named_parameters(), *self.projections.named_parameters()]
        self.optimizer = self.make_optimizer(param_groups(named, WEIGHT_DECAY))

    def make_optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=LR, foreach=False)

    def autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def guidance(self) -> Tensor:
        loss = 0.0
        for layer, project, target in zip(self.layers, self.projections, self.maps, strict=True):
            x = self.tokens[layer][:, self.model.num_prefix_tokens :]
            side = round(x.shape[1] ** 0.5)
            x = project(x.transpose(1, 2).reshape(len(x), -1, side, side))
            size = (max(side, target.shape[2]),) * 2
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
            loss = loss + F.mse_loss(x, F.interpolate(target, size, mode="bilinear", align_corners=False))
        return loss

    def __call__(self, images: Tensor, teacher_images: Tensor, labels: Tensor) -> Tensor:
        self.tokens.clear(), self.maps.clear()
        guidance = torch.zeros((), device=images.device)
        with self.autocast():
            if self.teacher is not None:
                with torch.no_grad():
                    self.teacher(teacher_images)
            logits = self.model(images)
            cls_loss = F.cross_entropy(logits, labels)
            if self.teacher is not None:
                guidance = self.guidance()
        loss = cls_loss + GUIDANCE_WEIGHT * guidance
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.read_back:
            top = logits.topk(5, 1).indices == labels[:, None]
            values = (
                loss.detach(),
                cls_loss.detach(),
                guidance.detach(),
                top[:, :1].sum(),
                top.sum(),
                self.optimizer.param_groups[0]["lr"],
            )
            [float(value) for value in values]  # sync: six times a step, as the paper's code logs
        return loss.detach()


class AmpStep(PaperStep):
    """A careful plain PyTorch step: SDPA (timm's default), fused AdamW, no read-back; in bf16 under autocast."""

    read_back = False

    def make_optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=LR, fused=True)

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast("cuda" if self.is_cuda else "cpu", torch.bfloat16, enabled=self.precision == "bf16")


class CompiledStep(AmpStep):
    """AmpStep with student, teacher and loss under torch.compile (max-autotune on CUDA)."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        mode = "max-autotune-no-cudagraphs" if self.is_cuda else "default"
        self.model.compile(mode=mode)
        if self.teacher is not None:
            self.teacher.compile(mode=mode)
            self.guidance = torch.compile(self.guidance, mode=mode)


class GraphedStep(CompiledStep):
    """CompiledStep, captured by hand and replayed as one CUDA graph with its optimizer; on the CPU CompiledStep."""

    replay: Callable[[], None] | None = None

    def make_optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=LR, fused=True, capturable=self.is_cuda)

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not self.is_cuda:
            return self.eager(*inputs)
        if self.replay is None:
            self.buffers = [value.clone() for value in inputs]
            self.replay = captured(lambda: self.keep_loss)
        for buffer, value in zip(self.buffers, inputs, strict=True):
            buffer.copy_(value)
        self.replay()
        return self.loss

    def eager(self, *inputs: Tensor) -> Tensor:
        """Run the step that the graph holds, without the graph."""
        return super().__call__(*inputs)

    def keep_loss(self) -> None:
        self.loss = self.eager(*self.buffers)


PEERS = {"paper": PaperStep, "amp": AmpStep, "compile": CompiledStep, "compile-graph": GraphedStep}
