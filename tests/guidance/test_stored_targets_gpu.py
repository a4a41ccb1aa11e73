"""Stored targets on a GPU: the same losses eagerly, in a graph, and with rows that come from host memory."""

import pytest
import torch

from lgfast.config import StepConfig
from lgfast.data import build_train_loader, load_dataset
from lgfast.guidance import GuidedStudent, Teacher, offline, rows
from lgfast.guidance.cached import CachedTeacher
from lgfast.guidance.offline import OfflineTeacher, crop_maps, stored_rows
from lgfast.models import create_model
from lgfast.ops.augment import augment_plan
from lgfast.optim.flat_adamw import FlatAdamW
from lgfast.spec.augment import AugmentSpec
from lgfast.step import Objective, TrainMeter, TrainStep

pytestmark = pytest.mark.gpu
SPEC = AugmentSpec(image_size=32, teacher_size=16)
EPOCHS, BATCH = 4, 16


def make_teacher(targets, loader, folder):
    """The source of targets, and the batches for it."""
    torch.manual_seed(3)
    device = torch.device("cuda")
    teacher = Teacher(create_model("cifar_resnet8", num_classes=10).to(device), bn="running")
    if targets == "live":
        return teacher, loader
    if targets == "cached":
        stored = CachedTeacher(teacher, loader, folder)
    else:
        rows = stored_rows(teacher, loader.image_set, SPEC, torch.float32, folder, device)
        stored = OfflineTeacher(*rows, loader)
    return stored, stored.batches


def losses(targets, folder, graph="on"):
    """Return the loss of each step, over four epochs of two recurring views."""
    images = load_dataset("digits").subset(torch.arange(5 * BATCH))
    loader = build_train_loader("resident", images, SPEC, BATCH, seed=9, device="cuda", num_views=2)
    teacher, batches = make_teacher(targets, loader, folder)
    torch.manual_seed(5)
    model = create_model(
        "deit_tiny_patch16_224", num_classes=10, image_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2
    )
    student = GuidedStudent(model, (0, 1, 2), (16, 32, 64), 32).cuda().train()
    optimizer = FlatAdamW(student.parameters(), lr=1e-3)
    step = TrainStep(
        student,
        teacher,
        optimizer,
        TrainMeter("cuda"),
        Objective(2.5, device="cuda"),
        options=StepConfig(graph=graph),
    )
    found = []
    for epoch in range(EPOCHS):
        batches.seek(epoch)
        teacher.begin_epoch(epoch)
        for batch in batches:
            torch.cuda.set_sync_debug_mode("error" if len(found) > 5 else "default")  # captured by then
            step(batch)
            torch.cuda.set_sync_debug_mode("default")
            found.append(step.meter.read(TrainMeter.WINDOW)["loss"])
            step.meter.reset(TrainMeter.WINDOW)
    return found


@pytest.mark.parametrize("targets", ["cached", "offline"])
def test_graph_and_place_of_the_rows_do_not_change_the_losses(targets, tmp_path, monkeypatch):
    expected = losses(targets, tmp_path, graph="off")
    assert losses(targets, tmp_path) == expected
    for module in (rows, offline):
        monkeypatch.setattr(module, "fits_device", lambda num_bytes, device: False)
    assert losses(targets, tmp_path) == expected


def test_cached_targets_equal_live_ones(tmp_path):
    assert losses("cached", tmp_path) == pytest.approx(losses("live", tmp_path), rel=1e-5)


def test_crops_agree_with_the_cpu():
    sizes = torch.tensor([[32, 32], [40, 23]] * 16, dtype=torch.int32)
    plan = augment_plan(SPEC, sizes, torch.arange(32), torch.tensor([4, 2]))
    maps = torch.randn(32, 3, 8, 8)
    ours = crop_maps(maps.cuda(), plan.cuda(), sizes.cuda())
    torch.testing.assert_close(ours.cpu(), crop_maps(maps, plan, sizes), rtol=1e-5, atol=1e-5)
