"""Every row of the paper's table trains on real CIFAR-100 images, at a reduced size and depth."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lgfast.config import OptimConfig
from lgfast.data import load_dataset
from lgfast.data.loaders import build_train_loader
from lgfast.guidance import GuidedStudent, Teacher
from lgfast.models import create_model, default_layers, teacher_stages
from lgfast.optim.build import build_optimizer
from lgfast.spec.augment import AugmentSpec
from lgfast.step import Objective, TrainMeter, TrainStep
from tests.small_models import SHALLOW

CLASSES = ("apple", "bicycle", "castle", "dolphin", "leopard", "mushroom", "sunflower", "tractor")
SIZE = 32
SPEC = AugmentSpec(image_size=SIZE, teacher_size=32)
STUDENTS = (
    "deit_tiny_patch16_224", "t2t_vit_7", "t2t_vit_14", "pit_ti_224", "pvt_tiny", "pvt_v2_b0", "convit_tiny", "cvt_13"
)  # fmt: skip
# CvT's last block is not guided and only its class token is read, so the convolution of its other queries is idle
UNUSED = {"cvt_13": {f"model.stages.2.blocks.9.attn.conv_q.bn.{x}" for x in ("weight", "bias")}}
OTHER_PAIRS = (("vit_small_patch16_224", "resnet18"), ("convnext_atto", "regnety_002"))


@pytest.fixture(scope="module")
def image_set(tmp_path_factory):
    """64 real images in class folders, read as any custom dataset is."""
    root = tmp_path_factory.mktemp("cifar100")
    strip = np.asarray(Image.open(Path(__file__).parents[1] / "samples" / "cifar100.webp").convert("RGB"))
    for i, image in enumerate(strip.reshape(64, 32, 32, 3)):
        folder = root / "train" / CLASSES[i // 8]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    return load_dataset("folder", root, "train")


def train_epoch(student, teacher, image_set):
    """One epoch of four steps with the recipe's optimizer and augmentation; returns the meter."""
    loader = build_train_loader("timm", image_set, SPEC, batch_size=16)
    optimizer = build_optimizer(student.named_parameters(), OptimConfig())
    step = TrainStep(student, teacher, optimizer, TrainMeter("cpu"), Objective(2.5))
    student.train()
    for batch in loader:
        step(batch)
    return step.meter


@torch.no_grad()
def loss_of(student, teacher, image_set):
    """Guided loss of one augmented batch, in evaluation mode."""
    batch = next(iter(build_train_loader("timm", image_set, SPEC, batch_size=32, seed=1)))
    student.eval()
    targets = None if teacher is None else teacher.start(batch)
    logits, guidance = student(batch.images, targets)
    loss = F.cross_entropy(logits, batch.labels)
    return (loss if guidance is None else loss + 2.5 * guidance.loss).item()


def guided(name, teacher_name):
    """A student with the default taps and a teacher with the default stages."""
    shape = {} if name in UNUSED else SHALLOW.get(name, {})
    model = create_model(name, num_classes=8, image_size=SIZE, **shape)
    cnn = create_model(teacher_name, num_classes=8, image_size=32)
    stages, shapes = teacher_stages(cnn, 32)
    channels = [width for width, _ in shapes]
    return GuidedStudent(model, default_layers(model), channels, image_size=SIZE), Teacher(cnn, stages)


@pytest.mark.parametrize(("name", "teacher_name"), [(name, "cifar_resnet56") for name in STUDENTS] + list(OTHER_PAIRS))
def test_a_guided_student_trains(name, teacher_name, image_set):
    student, teacher = guided(name, teacher_name)
    before = loss_of(student, teacher, image_set)
    start = {key: p.detach().clone() for key, p in student.named_parameters()}
    meter = train_epoch(student, teacher, image_set)
    assert meter.first_bad_step() is None
    assert loss_of(student, teacher, image_set) < before
    still = {key for key, p in student.named_parameters() if p.requires_grad and torch.equal(p, start[key])}
    assert still == UNUSED.get(name, set())
    assert all(torch.equal(p, start[key]) for key, p in student.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "cifar_resnet20", "resnet18"])
def test_a_model_trains_without_guidance(name, image_set):
    student = GuidedStudent(create_model(name, num_classes=8, image_size=SIZE, **SHALLOW.get(name, {})))
    before = loss_of(student, None, image_set)
    assert train_epoch(student, None, image_set).first_bad_step() is None
    assert loss_of(student, None, image_set) != before
