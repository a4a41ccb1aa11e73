"""Checkpoints are whole or absent, and what does not fit is named."""

import json
import os
import random
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lgfast.records.checkpoint import (
    CheckpointError,
    CheckpointStore,
    find_weights,
    load_weights,
    read_weights,
    save_weights,
)
from tests.damage import damaged
from tests.torch_process import run as run_python


def linear(width=3):
    return nn.Sequential(nn.Linear(width, 2))


def test_weights_and_metadata_survive(tmp_path):
    model = linear()
    save_weights(tmp_path / "w.safetensors", model.state_dict(), {"class_names": ["a", "b"]})
    state, metadata = read_weights(tmp_path / "w.safetensors")
    assert metadata == {"class_names": ["a", "b"]}
    torch.testing.assert_close(state, dict(model.state_dict()), rtol=0, atol=0)


def test_truncated_weights_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, linear().state_dict(), {})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"w.safetensors is not a complete checkpoint"):
        read_weights(path)


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        find_weights(tmp_path / "nothing")


def test_shape_and_name_mismatches_are_named():
    with pytest.raises(CheckpointError, match=r"0.weight has shape \[2, 3\], the model needs \[2, 4\]"):
        load_weights(linear(4), linear(3).state_dict(), "file")
    with pytest.raises(CheckpointError, match=r"no tensor '0.bias'"):
        load_weights(linear(), {"0.weight": torch.zeros(2, 3)}, "file")
    with pytest.raises(CheckpointError, match=r"tensor 'extra' is not part of the model"):
        load_weights(linear(), dict(linear().state_dict()) | {"extra": torch.zeros(1)}, "file")


def test_store_keeps_the_newest(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(step, linear(), {}, {"step": step})
    assert [path.name for path in store.all()] == ["step_00000002", "step_00000003"]
    _, state = store.load_newest()
    assert state == {"step": 3}


def test_empty_store_has_nothing_to_load(tmp_path):
    assert CheckpointStore(tmp_path).load_newest() is None


def test_damaged_resume_state_is_named(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.save(1, linear(), {}, {})
    (path / "resume.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"resume.pt cannot be read"):
        store.load_newest()
    (path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(
        CheckpointError, match=r"model.safetensors is not a complete checkpoint .*; delete .*00000001 to start anew"
    ):
        store.load_newest()


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from torch import nn
from lgfast.records.checkpoint import CheckpointStore
from lgfast.records.files import WriteError
store = CheckpointStore(Path(sys.argv[1]))
model = nn.Linear(300, 300)
store.save(1, model, {}, {"optimizer": torch.zeros(1000)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for step, state in ((2, {}), (3, {"optimizer": torch.zeros(100_000)})):
    try:
        store.save(step, model if step == 2 else nn.Linear(3, 3), {}, state)
    except WriteError as error:
        print("refused:", error)
    else:
        print("written")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
def test_a_full_disk_leaves_earlier_checkpoints_intact(tmp_path):
    """The file size limit makes the operating system refuse writes half way, as a full disk does."""
    run = run_python(FULL_DISK, [str(tmp_path)])
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    for line, step in zip(lines, (2, 3), strict=True):
        place = f"{tmp_path}/checkpoints/step_{step:08d}"
        assert line.startswith(f"refused: could not write {place}: ") and "File too large" in line
        assert line.endswith("what was there is intact")
    store = CheckpointStore(Path(tmp_path))
    assert [path.name for path in store.all()] == ["step_00000001"]
    assert [path.name for path in store.folder.iterdir()] == ["step_00000001"]  # nothing half-written stays
    weights, _ = store.load_newest()
    assert weights["weight"].shape == (300, 300)


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_weights_have_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_weights(tmp_path / "w.safetensors", nn.Linear(2, 2).state_dict(), {})
        assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)


def several_kinds():
    return {
        "a": torch.randn(8, 9),
        "b": torch.randn(3).bfloat16(),
        "c": torch.arange(5),
        "d": torch.tensor(3.0),
        "e": torch.empty(0, 2),
    }


def test_damaged_weights_are_never_taken_for_others(tmp_path):
    path, state, metadata = tmp_path / "w.safetensors", several_kinds(), {"config": {"x": 1}, "class_names": ["a"]}
    save_weights(path, state, metadata)
    content, generator, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(500):
        path.write_bytes(damaged(content, generator))
        try:
            found, header = read_weights(path)
        except CheckpointError:
            refused += 1
            continue
        assert header == metadata  # such as a blank more in the header
        torch.testing.assert_close(found, state, rtol=0, atol=0)
    assert refused > 450


def test_damaged_checkpoints_are_never_continued(tmp_path):
    store, state = CheckpointStore(tmp_path), {"optimizer": torch.randn(40), "step": 7}
    path = store.save(7, linear(), {}, state) / "resume.pt"
    content, generator = path.read_bytes(), random.Random(0)
    for _ in range(100):
        if (changed := damaged(content, generator)) != content:
            path.write_bytes(changed)
            with pytest.raises(
                CheckpointError, match=r"resume.pt cannot be read .*; delete .*step_00000007 to start anew"
            ):
                store.load_newest()


def test_parts_of_two_checkpoints_are_none(tmp_path):
    store = CheckpointStore(tmp_path)
    first, second = (store.save(step, linear(), {}, {"step": step}) for step in (1, 2))
    shutil.copy(first / "resume.pt", second / "resume.pt")
    with pytest.raises(CheckpointError, match=r"resume\.pt cannot be read .its content does not match its digest"):
        store.load_newest()


def test_files_of_older_versions_are_read(tmp_path):
    """They have no digests."""
    path, state = tmp_path / "checkpoints" / "step_00000003", linear().state_dict()
    path.mkdir(parents=True)
    save_file(state, path / "model.safetensors", metadata={"lgfast": json.dumps({"epoch": 1})})
    torch.save({"step": 3}, path / "resume.pt")
    assert read_weights(path / "model.safetensors")[1] == {"epoch": 1}
    weights, resumed = CheckpointStore(tmp_path).load_newest()
    assert resumed == {"step": 3}
    torch.testing.assert_close(weights, dict(state), rtol=0, atol=0)


def test_a_step_is_saved_once(tmp_path):
    """Else there would be a moment without a checkpoint of this step."""
    store = CheckpointStore(tmp_path)
    path = store.save(4, linear(), {}, {"step": 4})
    before = [file.stat().st_ino for file in sorted(path.iterdir())]
    assert store.save(4, linear(), {}, {"step": 4}) == path
    assert [file.stat().st_ino for file in sorted(path.iterdir())] == before


def test_the_last_epoch_is_not_taken_for_the_best(tmp_path):
    for name in ("best", "last"):
        save_weights(tmp_path / f"{name}.safetensors", linear().state_dict(), {})
    assert find_weights(tmp_path) == tmp_path / "best.safetensors"
    (tmp_path / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has lost its best\.safetensors; .* or name .*last\.safetensors"):
        find_weights(tmp_path)
