"""Make the networks and the batch that the benchmarks of a training step share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.peers import GUIDANCE_WEIGHT, LR, WEIGHT_DECAY
from lgfast.config import StepConfig
from lgfast.data.batch import Batch
from lgfast.fusion import fuse, fuse_layers
from lgfast.fusion.layers import fused_layers_pay
from lgfast.guidance import GuidedStudent, Teacher
from lgfast.models import create_model
from lgfast.optim.build import param_groups
from lgfast.optim.flat_adamw import FlatAdamW
from lgfast.step import Objective, TrainMeter, TrainStep

CHANNELS = (16, 32, 64)


@dataclass(frozen=True)
class Shape:
    """A student, its input and its teacher."""

    image_size: int
    teacher_size: int
    classes: int
    layers: tuple[int, ...]
    teacher: str
    model: dict


SHAPES = {
    "deit_tiny_224": Shape(224, 32, 100, (0, 6, 11), "cifar_resnet56", {}),
    "digits": Shape(
        16, 16, 10, (0, 3, 5), "cifar_resnet8", {"patch_size": 2, "embed_dim": 64, "depth": 6, "num_heads": 2}
    ),
    "cifar100_cpu": Shape(
        32, 32, 100, (0, 3, 5), "cifar_resnet8", {"patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3}
    ),
}


class Setup:
    """One shape on one device: one batch, and for every provider fresh networks with the same weights."""

    def __init__(self, name: str, batch: int, guided: bool, device: torch.device) -> None:
        self.shape, self.guided, self.device = SHAPES[name], guided, device
        torch.manual_seed(0)
        shape = self.shape
        self.student = self.make_student()
        self.teacher = create_model(shape.teacher, shape.classes).to(device) if guided else None
        images = torch.randn(batch, 3, shape.image_size, shape.image_size, device=device)
        stride = shape.image_size // shape.teacher_size
        small = images[:, :, stride // 2 :: stride, stride // 2 :: stride].contiguous()
        labels = torch.randint(shape.classes, (batch,), device=device)
        self.batch = Batch(images, small, labels, torch.arange(batch, device=device))

    def make_student(self, compiled: bool = False) -> GuidedStudent:
        shape = self.shape
        model = create_model(
            "deit_tiny_patch16_224", shape.classes, image_size=shape.image_size, drop_path_rate=0.0, **shape.model
        )
        taps = (shape.layers, CHANNELS) if self.guided else ((), ())
        return GuidedStudent(model, *taps, shape.image_size, compiled=compiled).to(self.device)

    def fresh_student(self, compiled: bool, fused_layers: bool) -> GuidedStudent:
        student = self.make_student(compiled)
        student.load_state_dict(self.student.state_dict())
        fuse(student)  # as a run does; peers keep timm's attention
        if fused_layers:
            fuse_layers(student.model)
        return student

    def fresh_teacher(self, precision: str, compiled: bool) -> Teacher | None:
        if not self.guided:
            return None
        model = create_model(self.shape.teacher, self.shape.classes).to(self.device)
        model.load_state_dict(self.teacher.state_dict())
        return Teacher(model, dtype=torch.bfloat16 if precision == "bf16" else None, compiled=compiled)

    def train_step(self, precision: str, **options) -> TrainStep:
        """Make a step on fresh networks; options are those of StepConfig."""
        compiled = options.get("compile") == "on"
        pays = precision == "fp32" and fused_layers_pay(self.device, torch.float32)
        choice = options.get("fused_layers", "auto")
        student = self.fresh_student(compiled, choice == "on" or (choice == "auto" and pays))
        optimizer = FlatAdamW(param_groups(student.named_parameters(), WEIGHT_DECAY), lr=LR)
        return TrainStep(
            student,
            self.fresh_teacher(precision, compiled),
            optimizer,
            TrainMeter(self.device),
            Objective(GUIDANCE_WEIGHT, device=self.device),
            precision=precision,
            options=StepConfig(**options),
        )
