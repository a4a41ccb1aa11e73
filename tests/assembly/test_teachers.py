"""Kept teachers are found again."""

from types import SimpleNamespace

import pytest

from lgfast.assembly import teachers
from lgfast.assembly.images import load_images
from lgfast.assembly.teachers import teacher_config, teacher_digest, teacher_folder, teacher_source
from lgfast.config import load_recipe, replace
from lgfast.runtime import locks
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.runtime.locks import file_lock
from tests.runs import StopAt, tiny_config

IMAGES = SimpleNamespace(content_hash="0")


@pytest.mark.parametrize(
    ("recipe", "digest"),
    [
        ("digits", "b599982ba6c9e6d6"),
        ("cifar100-deit-ti-guided", "2240d8ce04ae66bc"),
        ("flowers102-deit-ti-guided", "f965fe2eb6e14260"),
    ],
)
def test_a_teacher_has_the_name_that_it_was_first_kept_under(recipe, digest):
    """New keys of the configuration must not lose teachers, each of which took hours to train."""
    config = replace(load_recipe(recipe), {"precision": "fp32"})
    assert teacher_digest(teacher_config(config), IMAGES) == digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance.student_layers": "0,1"}, "got 2 student layers and 3 teacher stages; set guidance.student_layers"),
        ({"guidance.student_layers": "0,1,7"}, "guidance.student_layers: deit_tiny_patch16_224 has 3 blocks"),
        ({"teacher.stages": "0,1,3"}, r"teacher.stages: a stage must lie in \[-3, 2\], got 3"),
        ({"optim.name": "adamv"}, "optim.name: unknown optimizer 'adamv'"),
        ({"optim.freeze": "blocks:4"}, "optim.freeze: deit_tiny_patch16_224 has 3 blocks, got blocks:4"),
        ({"data.batch_size": 200}, "data.batch_size: 200 is more than the 120 training images; lower it"),
    ],
)
def test_a_student_that_cannot_be_trained_is_refused_before_its_teacher_trains(tmp_path, changes, message):
    config = tiny_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        teacher_source(config, load_images(config, "train"), pytest.fail, InterruptFlag())
    assert not (tmp_path / "cache").exists()


def test_a_teacher_whose_epochs_follow_from_the_images_is_trained_as_long_as_its_student():
    assert teacher_config(replace(load_recipe("photos"), {"epochs": 3})).epochs == 3
    quick = load_recipe("photos-quick")
    teacher = teacher_config(quick)
    assert (teacher.epochs, teacher.data.batch_size) == (quick.epochs, quick.data.batch_size) == (16, 16)
    assert teacher_config(replace(load_recipe("digits"), {"epochs": 3})).epochs == load_recipe("digits-resnet8").epochs


def test_what_changes_a_teacher_changes_its_name():
    config = replace(load_recipe("digits"), {"precision": "fp32"})
    teacher = teacher_config(config)
    changes = {"optim.lr": 0.5, "model.init": "mimetic", "epochs": 7, "augment.weak": "true", "data.train_limit": 9}
    digests = {teacher_digest(replace(teacher, {key: value}), IMAGES) for key, value in changes.items()}
    assert len(digests | {teacher_digest(teacher, IMAGES)}) == len(changes) + 1
    moved = replace(teacher, {"data.root": "elsewhere", "device": "cpu", "log.every_steps": 3})
    assert teacher_digest(moved, IMAGES) == teacher_digest(teacher, IMAGES)


def test_a_teacher_that_a_stranger_made_is_not_used(tmp_path, monkeypatch):
    """The cache may be a folder where anybody can write; here its files belong to a user who is not trusted."""
    config = replace(load_recipe("digits"), {"teacher.cache": str(tmp_path), "precision": "fp32"})
    run_dir = teacher_folder(config, IMAGES)
    run_dir.mkdir(parents=True)
    (run_dir / "result.json").write_text("{}")
    assert teacher_source(config, IMAGES, pytest.fail, InterruptFlag()) == run_dir
    monkeypatch.setattr(teachers, "owners", lambda *folders: frozenset({12345}))
    with pytest.raises(ValueError, match=r"teacher.cache: .*digits-resnet8-.* is not used: it belongs to user \d+"):
        teacher_source(config, IMAGES, pytest.fail, InterruptFlag())


def test_the_wait_for_another_processs_teacher_is_told_and_can_be_ended(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(locks, "POLL_S", 0.001)
    monkeypatch.setattr(locks, "PATIENCE_S", 0)
    monkeypatch.setattr(locks, "LINE_EVERY_S", 0.02)
    config = replace(load_recipe("digits"), {"teacher.cache": str(tmp_path), "precision": "fp32"})
    run_dir = teacher_folder(config, IMAGES)
    run_dir.mkdir(parents=True)
    (run_dir / "result.json").write_text("{}")
    with (
        file_lock(run_dir / "lock"),  # as a process that trains it holds it
        pytest.raises(Interrupted, match=rf"stopped while another process trains .*{run_dir}; the same command"),
    ):
        teacher_source(config, IMAGES, pytest.fail, StopAt(50))
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == f"waiting for another process, which trains the teacher in {run_dir}"
    assert second.startswith(f"{first} (") and second.endswith(" s)")
    assert teacher_source(config, IMAGES, pytest.fail, InterruptFlag()) == run_dir
