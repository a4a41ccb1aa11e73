"""Batches and steps on the meta device: a tensor made or read on the host would break a step's capture on a GPU, and
make a loader wait."""

import contextlib
import importlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lgfast import fuse, fuse_layers
from lgfast.config import DistillConfig, StepConfig
from lgfast.data import build_train_loader
from lgfast.data.batch import Batch
from lgfast.data.image_set import image_set_from_arrays
from lgfast.guidance import GuidedStudent, Teacher, cached
from lgfast.models import create_model, default_layers
from lgfast.optim.build import param_groups
from lgfast.optim.flat_adamw import FlatAdamW
from lgfast.spec.augment import AugmentSpec
from lgfast.step import Objective, TrainMeter, TrainStep
from tests.small_models import SHALLOW

STUDENTS = (
    "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "pit_ti_224", "pvt_tiny", "pvt_v2_b0", "convit_tiny",
    "t2t_vit_7", "cvt_13",
)  # fmt: skip
DEVICE, SIZE = torch.device("meta"), 64
NUM_CLASSES, BATCH = 5, 4


class HostTensors(TorchDispatchMode):
    """Names of the operations that take or give a tensor on the host, and of all."""

    def __init__(self):
        super().__init__()
        self.found, self.all = [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.found.append(str(func))
        self.all.add(func.overloadpacket._qualified_op_name)
        return result


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """The meta device has no autocast, not even to be asked for; and it gets what a GPU with kernels gets."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type=None: False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    attention = importlib.import_module("lgfast.ops.short_attention")
    monkeypatch.setattr(attention, "_unavailable_reason", lambda device: None)


def build(
    name="deit_tiny_patch16_224", fused=True, bn="batch", distill="soft", precision="bf16", teacher=None, **options
):
    with DEVICE:
        model = create_model(name, num_classes=NUM_CLASSES, image_size=SIZE, **SHALLOW[name])
        student = GuidedStudent(model, default_layers(model), (16, 32, 64), SIZE).to(DEVICE)
        if fused:
            fuse(model)
        if options.get("fused_layers") == "on":
            fuse_layers(model)
        teacher = teacher or make_teacher(bn)
        step = TrainStep(
            student,
            teacher,
            FlatAdamW(
                param_groups(student.named_parameters(), 0.05),
                lr=1e-3,
                max_norm=1.0,
                skip_nonfinite=precision == "fp16-amp",
            ),
            TrainMeter(DEVICE),
            Objective(2.5, label_smoothing=0.1, distill=DistillConfig(mode=distill), device=DEVICE),
            precision=precision,
            options=StepConfig(ema_decay=0.9, **options),
        )
    student.train()
    return step


def make_teacher(bn="batch"):
    with DEVICE:
        model = create_model("cifar_resnet8", num_classes=NUM_CLASSES).to(DEVICE)
        return Teacher(model, bn=bn, dtype=torch.bfloat16, gives_logits=True)


def random_batch():
    images, small = torch.empty(BATCH, 3, SIZE, SIZE, device=DEVICE), torch.empty(BATCH, 3, 32, 32, device=DEVICE)
    labels = torch.empty(BATCH, dtype=torch.int64, device=DEVICE)
    return Batch(images, small, labels, torch.arange(BATCH, device=DEVICE))


def watch(step, batch=None):
    """Watch what a step does after the first one."""
    batch = batch or random_batch()
    step(batch)
    with HostTensors() as seen:
        step(batch)
    return seen


@pytest.mark.parametrize("name", STUDENTS)
def test_nothing_of_a_step_is_on_the_host(name):
    seen = watch(build(name))
    assert seen.found == []
    assert {"lgfast::short_attention_fwd", "lgfast::short_attention_qkvpacked_fwd"} & seen.all
    assert {"lgfast::feature_mse_fwd", "lgfast::flat_adamw"} <= seen.all


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "pvt_v2_b0", "convit_tiny"])
def test_nor_without_fused_attention(name):
    seen = watch(build(name, fused=False))
    assert seen.found == [] and "lgfast::short_attention_fwd" not in seen.all


@pytest.mark.parametrize("name", STUDENTS)
def test_nor_with_fused_layers(name):
    seen = watch(build(name, fused_layers="on"))
    assert seen.found == [] and {"lgfast::add_layer_norm_fwd", "lgfast::bias_gelu_fwd"} & seen.all


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 2},
        {"bn": "running"},
        {"distill": "hard"},
        {"distill": "none"},
        {"precision": "fp32"},
        {"precision": "fp16-amp"},
    ],
    ids=str,
)
def test_nor_in_other_ways_of_training(changes):
    assert watch(build(**changes)).found == []


def make_loader(**changes):
    arrays = np.zeros((6 * BATCH, 32, 32, 3), np.uint8)
    images = image_set_from_arrays("x", arrays, [i % NUM_CLASSES for i in range(len(arrays))], tuple("abcde"))
    spec = AugmentSpec(image_size=SIZE, teacher_size=32, **changes)
    return build_train_loader("resident", images, spec, BATCH, device=DEVICE, dtype=torch.bfloat16, num_views=2)


@pytest.mark.parametrize("changes", [{}, {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}], ids=["recipe", "mixed"])
def test_nothing_of_a_batch_of_the_resident_loader_is_on_the_host(changes):
    """Only what is drawn once an epoch may be there."""
    batches, step = iter(make_loader(**changes)), build()
    next(batches)
    with HostTensors() as seen:
        batch = next(batches)
    assert seen.found == []
    assert {"lgfast::augment_plan", "lgfast::augment"} <= seen.all
    assert batch.images.shape == (BATCH, 3, SIZE, SIZE) and batch.teacher_images.shape == (BATCH, 3, 32, 32)
    assert watch(step, batch).found == []


def test_nothing_of_a_step_with_cached_targets_is_on_the_host(monkeypatch, tmp_path):
    def allocate(num_rows, num_values, dtype, device, folder):
        return torch.empty(num_rows, num_values, dtype=dtype, device=device)

    monkeypatch.setattr(cached, "allocate_rows", allocate)  # as where they fit on the device
    loader = make_loader()
    step = build(teacher=cached.CachedTeacher(make_teacher("running"), loader, tmp_path))
    step.teacher.begin_epoch(0)
    seen = watch(step, next(iter(loader)))
    assert seen.found == [] and "aten::index_select" in seen.all


def test_the_check_sees_a_tensor_on_the_host():
    with HostTensors() as host:
        torch.empty(2, device=DEVICE) * torch.tensor(2.0)
    assert host.found
