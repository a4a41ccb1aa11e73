"""The offline mode equals its definition, composed from torchvision's functions on single images."""

import copy
import errno
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as TF

from lgfast.assembly.run import train_run
from lgfast.assembly.targets import target_source
from lgfast.assembly.teachers import as_teacher
from lgfast.config import Config, replace
from lgfast.data import FileSet, build_train_loader, load_dataset
from lgfast.data.cache_file import UselessCacheError
from lgfast.guidance import GuidedStudent, Teacher
from lgfast.guidance import offline as offline_module
from lgfast.guidance.offline import OfflineTeacher, crop_maps, stored_rows
from lgfast.guidance.rows import RowLoader
from lgfast.models import create_model
from lgfast.ops.augment import augment_plan
from lgfast.runtime.interrupt import Interrupted
from lgfast.spec.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentSpec
from lgfast.step import Objective, TrainMeter, TrainStep
from tests.runs import StopAt, metrics, tiny_config
from tests.step.test_step import HostReads

SPEC = AugmentSpec(image_size=32, teacher_size=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images():
    return load_dataset("digits").subset(torch.arange(230))  # a block of 200 and one of 30


def make_teacher():
    torch.manual_seed(3)
    return create_model("cifar_resnet8", num_classes=10)


def crop_by_torchvision(feature_map, row, size):
    """One map [C, h, w] under one row of a plan, as the paper's code crops features."""
    (top, left, height, width), flip = row[:4].tolist(), int(row[6])
    h, w = feature_map.shape[1:]
    box = (int(top / size[0] * h), int(left / size[1] * w), int(height / size[0] * h), int(width / size[1] * w))
    box = (*box[:2], *(max(side, 1) for side in box[2:]))
    cropped = TF.resized_crop(feature_map, *box, [h, w], TF.InterpolationMode.BILINEAR, antialias=False)
    cropped = TF.hflip(cropped) if flip & 1 else cropped
    return TF.vflip(cropped) if flip & 2 else cropped


@pytest.mark.parametrize("side", [1, 2, 7, 32])
def test_crops_equal_torchvision(side):
    sizes = torch.tensor([[32, 32], [40, 23], [9, 64], [500, 333]] * 16, dtype=torch.int32)
    spec = AugmentSpec(image_size=32, teacher_size=16, vertical_flip_prob=0.5)
    plan = augment_plan(spec, sizes, torch.arange(64), torch.tensor([4, 2]))
    maps = torch.randn(64, 3, side, side, dtype=torch.float64)
    ours = crop_maps(maps, plan, sizes)
    for found, feature_map, row, size in zip(ours, maps, plan, sizes.tolist(), strict=True):
        torch.testing.assert_close(found, crop_by_torchvision(feature_map, row, size), rtol=1e-10, atol=1e-12)
    assert all(10 < ((plan[:, 6].int() & bit) > 0).sum() < 54 for bit in (1, 2))  # both flipped and not


def whole_image(images, index):
    """The teacher's view of an un-augmented image, by Pillow and torchvision."""
    picture = Image.fromarray(images.image(index)).resize((16, 16), Image.Resampling.BILINEAR)
    return TF.normalize(TF.to_tensor(picture), IMAGENET_MEAN, IMAGENET_STD)


def offline_rows(cnn, images, folder, bn="batch"):
    """Computed and stored in float64: batch statistics of 30 images magnify the roundings of float32."""
    teacher = Teacher(copy.deepcopy(cnn), bn=bn, dtype=torch.float64)
    return stored_rows(teacher, images, SPEC, torch.float64, folder, CPU)


def plain_maps(cnn, images, bn):
    """Maps of all images, in blocks of 200 consecutive ones, from hooks on the CNN in train mode for bn=batch."""
    cnn, maps = copy.deepcopy(cnn).double().train(bn == "batch"), []
    for stage in (cnn.layer1, cnn.layer2, cnn.layer3):
        stage.register_forward_hook(lambda module, args, output: maps.append(output))
    with torch.no_grad():
        for block in torch.stack([whole_image(images, i) for i in range(len(images))]).split(200):
            cnn(block.double())
    return [torch.cat(maps[stage::3]) for stage in range(3)]


@pytest.mark.parametrize("bn", ["batch", "running"])
def test_stored_maps_equal_the_definition(images, tmp_path, bn):
    cnn = make_teacher()
    rows, layout = offline_rows(cnn, images, tmp_path, bn)
    assert rows.shape == (230, 16 * 16 * 16 + 32 * 8 * 8 + 64 * 4 * 4)
    for found, expected in zip(layout.unpack(rows).maps, plain_maps(cnn, images, bn), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_maps_are_computed_once_per_images_and_teacher(images, tmp_path, monkeypatch, capsys):
    teacher = Teacher(make_teacher())
    first = stored_rows(teacher, images, SPEC, torch.float32, tmp_path, CPU)[0].clone()
    (path,) = tmp_path.glob("*.rows")
    calls, features = [], Teacher.features
    monkeypatch.setattr(Teacher, "features", lambda self, x: calls.append(len(x)) or features(self, x))
    again, _ = stored_rows(teacher, images, SPEC, torch.float32, tmp_path, CPU)
    assert torch.equal(first, again) and not calls

    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    repaired, _ = stored_rows(teacher, images, SPEC, torch.float32, tmp_path, CPU)
    assert torch.equal(first, repaired) and calls == [200, 30]
    assert "is damaged (its content does not match its hash)" in capsys.readouterr().out
    path.write_bytes(content[: len(content) // 2])
    assert torch.equal(first, stored_rows(teacher, images, SPEC, torch.float32, tmp_path, CPU)[0])

    other = make_teacher()
    nn.init.normal_(other.fc.bias)
    stored_rows(Teacher(other), images, SPEC, torch.float32, tmp_path, CPU)
    stored_rows(Teacher(make_teacher(), bn="running"), images, SPEC, torch.float32, tmp_path, CPU)
    stored_rows(teacher, images.subset(torch.arange(20)), SPEC, torch.float32, tmp_path, CPU)
    assert len(list(tmp_path.glob("*.rows"))) == 4
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("key", ["shapes", "num_bytes", "content_hash"])
def test_rows_whose_footer_lacks_a_key_or_lies_are_computed_again(images, tmp_path, key):
    teacher, few = Teacher(make_teacher()), images.subset(torch.arange(20))
    first, layout = stored_rows(teacher, few, SPEC, torch.float32, tmp_path, CPU)
    (path,) = tmp_path.glob("*.rows")
    content = path.read_bytes()
    at = content.rindex(f'"{key}"'.encode()) + 1
    value = at + len(key) + 3
    for where, byte in [(at, b"?"), *((value, byte) for byte in (b"9", b"n", b"?"))]:
        path.write_bytes(content[:where] + byte + content[where + 1 :])
        again = stored_rows(teacher, few, SPEC, torch.float32, tmp_path, CPU)
        assert torch.equal(first, again[0]) and again[1] == layout


def test_rows_of_a_stranger_are_computed_again(images, tmp_path, monkeypatch, capsys):
    teacher, few = Teacher(make_teacher()), images.subset(torch.arange(20))
    stored_rows(teacher, few, SPEC, torch.float32, tmp_path, CPU)
    capsys.readouterr()
    monkeypatch.setattr(offline_module, "owners", lambda *folders: frozenset({12345}))
    with pytest.raises(UselessCacheError, match="it belongs to user"):  # what is computed here is this user's again
        stored_rows(teacher, few, SPEC, torch.float32, tmp_path, CPU)
    assert "it belongs to user" in capsys.readouterr().out


def test_a_full_disk_leaves_no_half_file(images, tmp_path, monkeypatch):
    def fail(file, tree):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(offline_module, "append_footer", fail)
    with pytest.raises(OSError, match=r"no space left for the teacher's maps .*; free some, or set teacher.cache"):
        offline_rows(make_teacher(), images.subset(torch.arange(20)), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_image_files_are_refused(tmp_path):
    files = FileSet("folder", [], torch.empty(0, dtype=torch.int64), (), "")
    config = replace(Config(), {"teacher.targets": "offline", "teacher.cache": str(tmp_path)})
    with pytest.raises(ValueError, match=r"teacher.targets: offline reads decoded images; use data.loader=resident"):
        target_source(config, Teacher(make_teacher()), SimpleNamespace(image_set=files))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_rounded_float32_ones(images, tmp_path, dtype):
    teacher, few = Teacher(make_teacher()), images.subset(torch.arange(20))
    full, half = (stored_rows(teacher, few, SPEC, d, tmp_path, CPU)[0] for d in (torch.float32, dtype))
    assert torch.equal(half, full.to(dtype))


@pytest.mark.parametrize(("targets", "num_compiled"), [("offline", 0), ("live", 1)])
def test_stored_maps_do_not_depend_on_compilation(images, tmp_path, counted_compiles, targets, num_compiled):
    config = replace(Config(), {"teacher.targets": targets, "step.compile": "on"})
    stored_rows(as_teacher(config, make_teacher()), images.subset(torch.arange(20)), SPEC, torch.float32, tmp_path, CPU)
    assert counted_compiles.frame_count == num_compiled


def make_step(teacher):
    torch.manual_seed(5)
    model = create_model(
        "deit_tiny_patch16_224", num_classes=10, image_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2,
        drop_path_rate=0.0,
    )  # fmt: skip
    student = GuidedStudent(model, (0, 1, 2), (16, 32, 64), 32).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    return TrainStep(student, teacher, optimizer, TrainMeter("cpu"), Objective(2.5))


def offline(images, folder, kind="resident", **options):
    loader = build_train_loader(kind, images, SPEC, 16, seed=9, **options)
    return OfflineTeacher(*offline_rows(make_teacher(), images, folder), loader), loader


@pytest.mark.parametrize("kind", ["resident", "timm"])
def test_targets_of_a_batch_equal_the_composition(images, tmp_path, kind):
    teacher, loader = offline(images, tmp_path, kind)
    loader.set_epoch(3)
    teacher.begin_epoch(3)
    batch = next(iter(loader))
    plan = augment_plan(SPEC, images.sizes[batch.indices], batch.indices, torch.tensor([9, 3]))
    expected = plain_maps(make_teacher(), images, "batch")
    for found, stage in zip(teacher.start(batch).wait().maps, expected, strict=True):
        for place, index in enumerate(batch.indices.tolist()):
            wanted = crop_by_torchvision(stage[index], plan[place], (8, 8))
            torch.testing.assert_close(found[place], wanted, rtol=1e-4, atol=1e-4)


def test_a_step_reads_nothing_back_and_rows_from_the_host_give_the_same(images, tmp_path):
    losses = []
    for brings_rows in (False, True):
        teacher, loader = offline(images, tmp_path)
        if brings_rows:
            loader = RowLoader(loader, teacher.rows)
        step = make_step(teacher)
        teacher.begin_epoch(0)
        for number, batch in enumerate(loader):
            assert (batch.teacher_rows is not None) == brings_rows
            with HostReads() as reads:
                step(batch)
            assert reads.found == []
            if number == 2:
                break
        losses.append(step.meter.read(TrainMeter.WINDOW))
    assert losses[0] == losses[1]


def test_offline_runs_agree_between_loaders_and_resume_exactly(tmp_path, capsys):
    changes = {"teacher.targets": "offline", "log.every_steps": 1, "epochs": 2}
    whole = tiny_config(tmp_path, **changes)
    train_run(whole)
    assert "computing the teacher's maps of 96 images once" in capsys.readouterr().out
    assert len(list((tmp_path / "cache" / "targets").glob("digits-*.rows"))) == 1
    rows = metrics(whole.run_dir)
    assert all(row["guidance_loss"] > 0 for row in rows)

    by_timm = replace(whole, {"data.loader": "timm", "run_dir": str(tmp_path / "timm")})
    train_run(by_timm)
    assert metrics(by_timm.run_dir) == rows

    stopped = replace(whole, {"run_dir": str(tmp_path / "stopped")})
    with pytest.raises(Interrupted):
        train_run(stopped, interrupt=StopAt(8))
    train_run(stopped, resume=True)
    assert metrics(stopped.run_dir) == rows

    live = replace(whole, {"teacher.targets": "live", "run_dir": str(tmp_path / "live")})
    train_run(live)
    assert [row["guidance_loss"] for row in metrics(live.run_dir)] != [row["guidance_loss"] for row in rows]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.mode": "soft"}, "use distill.mode=none"),
        ({"augment.weak": True}, "use augment.weak=false"),
        ({"augment.mixup_alpha": 0.8}, "set augment.mixup_alpha=0"),
        ({"augment.cutmix_alpha": 1.0}, "set augment.mixup_alpha=0 and augment.cutmix_alpha=0"),
        ({"teacher.bn": "synced"}, "use teacher.bn=batch or running"),
    ],
)
def test_what_offline_maps_cannot_follow_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"teacher.targets: offline cannot be: .*{message}"):
        replace(Config(), {"teacher.targets": "offline"} | changes)
