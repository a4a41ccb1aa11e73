"""Checkpoints are whole or absent, and what does not fit is named."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lgfast.records.checkpoint import (
    CheckpointError,
    CheckpointStore,
    find_weights,
    load_weights,
    read_weights,
    save_weights,
)


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
        CheckpointError, match=r"model.safetensors is not .*; delete .*00000001 to resume from an earlier"
    ):
        store.load_newest()


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from torch import nn
from lgfast.records.checkpoint import CheckpointError, CheckpointStore
store = CheckpointStore(Path(sys.argv[1]))
model = nn.Linear(300, 300)
store.save(1, model, {}, {"optimizer": torch.zeros(1000)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for step, state in ((2, {}), (3, {"optimizer": torch.zeros(100_000)})):
    try:
        store.save(step, model if step == 2 else nn.Linear(3, 3), {}, state)
    except CheckpointError as error:
        print("refused:", error)
    else:
        print("written")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
def test_a_full_disk_leaves_earlier_checkpoints_intact(tmp_path):
    """The file size limit makes the operating system refuse writes half way, as a full disk does."""
    run = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=True)
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
