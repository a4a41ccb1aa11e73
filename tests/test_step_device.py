"""The whole step on the meta device: a tensor made or read on the host would break its capture on a GPU."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lgfast.config import DistillConfig, StepConfig
from lgfast.data.batch import Batch
from lgfast.flat_adamw import FlatAdamW
from lgfast.guidance import GuidedStudent, Teacher
from lgfast.metrics import TrainMeter
from lgfast.models import create_model, default_layers
from lgfast.optim import param_groups
from lgfast.step import TrainStep

STUDENTS = (
    "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "pit_ti_224", "pvt_tiny", "pvt_v2_b0", "convit_tiny",
    "t2t_vit_7", "cvt_13",
)  # fmt: skip
DEVICE, SIZE = torch.device("meta"), 64


class HostTensors(TorchDispatchMode):
    """Names of the operations that take or give a tensor on the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.found.append(str(func))
        return result


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """The meta device has none, not even to be asked for."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type=None: False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())


def build(name):
    model = create_model(name, num_classes=5, image_size=SIZE)
    student = GuidedStudent(model, default_layers(model), (16, 32, 64), SIZE).to(DEVICE)
    teacher = Teacher(create_model("cifar_resnet8", num_classes=5).to(DEVICE), dtype=torch.bfloat16, gives_logits=True)
    step = TrainStep(
        student,
        teacher,
        FlatAdamW(param_groups(student.named_parameters(), 0.05), lr=1e-3),
        TrainMeter(DEVICE),
        guidance_weight=2.5,
        precision="bf16",
        label_smoothing=0.1,
        clip_norm=1.0,
        distill=DistillConfig(mode="soft"),
        options=StepConfig(ema_decay=0.9),
    )
    student.train()
    return step


@pytest.mark.parametrize("name", STUDENTS)
def test_nothing_of_a_step_is_on_the_host(name):
    step = build(name)
    images, small = torch.empty(4, 3, SIZE, SIZE, device=DEVICE), torch.empty(4, 3, 32, 32, device=DEVICE)
    batch = Batch(images, small, torch.empty(4, dtype=torch.int64, device=DEVICE), torch.arange(4, device=DEVICE))
    step(batch)
    with HostTensors() as host:
        step(batch)
    assert host.found == []


def test_the_check_sees_a_tensor_on_the_host():
    with HostTensors() as host:
        torch.empty(2, device=DEVICE) * torch.tensor(2.0)
    assert host.found
