"""Cached targets change nothing: runs with them equal runs without, bit for bit, on the same recurring views."""

from pathlib import Path

import pytest
import torch

from lgfast.assembly.run import train_run
from lgfast.config import Config, replace
from lgfast.data import build_train_loader, load_dataset
from lgfast.guidance import Teacher, rows
from lgfast.guidance.cached import CachedTeacher
from lgfast.guidance.rows import RowLayout, RowLoader, allocate_rows
from lgfast.guidance.teacher import TeacherOutputs
from lgfast.models import create_model
from lgfast.records.checkpoint import read_weights
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.spec.augment import AugmentSpec
from lgfast.sweep.group import run_group
from tests.runs import StopAt, metrics, tiny_config
from tests.step.test_step import HostReads

CPU = torch.device("cpu")
RECURRING = {"data.views": 2, "teacher.bn": "running", "epochs": 3, "log.every_steps": 1, "distill.mode": "soft"}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A run that computes its targets in every step."""
    config = tiny_config(tmp_path_factory.mktemp("live"), **RECURRING)
    train_run(config)
    return config


def cached(live, run_dir, **changes):
    return replace(live, {"teacher.targets": "cached", "run_dir": str(run_dir)} | changes)


def assert_same_run(run_dir, expected):
    assert metrics(run_dir) == metrics(expected.run_dir)
    ours, theirs = (read_weights(Path(folder) / "last.safetensors")[0] for folder in (run_dir, expected.run_dir))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_cached_run_equals_live_run(live, tmp_path, monkeypatch):
    calls, outputs = [], Teacher.outputs
    monkeypatch.setattr(Teacher, "outputs", lambda self, x: calls.append(len(x)) or outputs(self, x))
    train_run(cached(live, tmp_path))
    assert_same_run(tmp_path, live)
    assert calls.count(16) == 2 * 6  # two views of 96 images, in batches of 16; the third epoch only reads


@pytest.mark.parametrize("precision", ["bf16", "fp16-amp"])
def test_cached_run_equals_live_run_in_low_precision(live, tmp_path, precision):
    expected = replace(live, {"precision": precision, "epochs": 2, "data.views": 1, "run_dir": str(tmp_path / "live")})
    train_run(expected)
    train_run(cached(expected, tmp_path / "cached"))
    assert_same_run(tmp_path / "cached", expected)


def test_cached_run_resumes_exactly(live, tmp_path):
    config = cached(live, tmp_path)
    with pytest.raises(Interrupted):
        train_run(config, interrupt=StopAt(15))
    assert 12 < metrics(tmp_path)[-1]["step"] < 18  # in the third epoch, which shows the first view again
    train_run(config, resume=True)
    assert_same_run(tmp_path, live)


def test_group_of_cached_students_equals_live_run(live, tmp_path):
    configs = [cached(live, tmp_path / "a"), cached(live, tmp_path / "b", **{"optim.lr": 1e-3, "distill.mode": "none"})]
    assert [outcome.status for outcome in run_group(configs, InterruptFlag())] == ["complete"] * 2
    assert_same_run(tmp_path / "a", live)


@pytest.fixture(scope="module")
def images():
    return load_dataset("digits").subset(torch.arange(40))


def pair(images, tmp_path, kind, brings_rows, **options):
    """Batches of two recurring views, their cached teacher, and the live one."""
    torch.manual_seed(2)
    model = create_model("cifar_resnet8", num_classes=10)
    spec = AugmentSpec(image_size=16, teacher_size=8)
    loader = build_train_loader(kind, images, spec, 12, seed=1, num_views=2, **options)
    live = Teacher(model, bn="running", gives_logits=True)
    cached = CachedTeacher(live, loader, tmp_path)
    return RowLoader(loader, cached.rows, len(images)) if brings_rows else cached.batches, cached, live


@pytest.mark.parametrize(("kind", "options"), [("resident", {}), ("timm", {}), ("resident", {"rank": 1, "world": 3})])
@pytest.mark.parametrize("brings_rows", [False, True])
def test_cached_outputs_equal_live_ones(images, kind, options, brings_rows, tmp_path):
    stream, teacher, live = pair(images, tmp_path, kind, brings_rows, **options)
    for epoch in range(4):
        stream.seek(epoch, epoch % 2)  # as after a resume
        teacher.begin_epoch(epoch)
        for batch in stream:
            with HostReads() as reads:
                found = teacher.start(batch).wait()
            assert reads.found == []
            assert (batch.teacher_rows is not None) == brings_rows
            expected = live.start(batch).wait()
            assert all(torch.equal(a, b) for a, b in zip(found.maps, expected.maps, strict=True))
            assert torch.equal(found.logits, expected.logits)


def test_layout_gives_back_what_was_packed():
    outputs = TeacherOutputs([torch.randn(3, 4, 2, 5), torch.randn(3, 1, 3, 3)], torch.randn(3, 7))
    layout = RowLayout.of(outputs)
    packed = layout.pack(outputs)
    assert packed.shape == (3, layout.num_values) == (3, 40 + 9 + 7)
    maps, logits = layout.unpack(packed)
    assert all(torch.equal(a, b) for a, b in zip(maps, outputs.maps, strict=True))
    assert torch.equal(logits, outputs.logits)
    assert RowLayout.of(outputs._replace(logits=None)).unpack(packed[:, :49]).logits is None


def test_rows_go_to_a_file_where_memory_is_short(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "free_host_bytes", lambda: 1000)
    found = allocate_rows(100, 7, torch.float32, CPU, tmp_path)
    found.copy_(torch.arange(700.0).view(100, 7))
    assert found[99, 6] == 699
    assert list(tmp_path.iterdir()) == []  # it has no name, so it goes with the process


def test_rows_that_fit_nowhere_are_refused_with_their_size(tmp_path):
    with pytest.raises(ValueError, match=r"teacher.targets: \d+ rows .* take 3725290.3 GiB, .* of host memory"):
        allocate_rows(10**9, 10**6, torch.float32, CPU, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.views": 0}, "set data.views=K"),
        ({"teacher.bn": "batch"}, "use teacher.bn=running"),
        ({"augment.cutmix_alpha": 1.0}, "set augment.mixup_alpha=0 and augment.cutmix_alpha=0"),
    ],
)
def test_what_would_not_be_exact_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"teacher.targets: cached cannot be: .*{message}"):
        replace(Config(), {"teacher.targets": "cached", "data.views": 4, "teacher.bn": "running"} | changes)
