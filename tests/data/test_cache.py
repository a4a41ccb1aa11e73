"""The cache: decode once, notice every change and damage, never leave half a file, survive a race."""

import errno
import os
import subprocess
import sys
import time

import pytest
import torch

from lgfast.data import cache, cache_file, load_dataset
from lgfast.data.decode import map_in_order
from tests.data.layouts import write_folder


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.delenv("LGFAST_CACHE", raising=False)
    write_folder(tmp_path / "tree")
    return tmp_path / "tree"


def cache_path(tree):
    (path,) = (tree / ".lgfast_cache").glob("*.lgfast")
    return path


def forbid_decoding(monkeypatch):
    def decode(path):
        raise AssertionError(f"decoded {path} again")

    monkeypatch.setattr(cache, "decode_image", decode)


def test_second_load_reads_the_cache(tree, monkeypatch):
    first = load_dataset("folder", tree)
    forbid_decoding(monkeypatch)
    second = load_dataset("folder", tree)
    assert second.content_hash == first.content_hash
    assert torch.equal(second.pixels, first.pixels)
    assert torch.equal(second.sizes, first.sizes)


def test_writing_to_the_pixels_does_not_reach_the_file(tree):
    before = cache_file.read_footer(cache_path(tree)) if load_dataset("folder", tree) else None
    load_dataset("folder", tree).pixels.zero_()
    assert cache_file.read_cache(cache_path(tree), before).pixels.any()


@pytest.mark.parametrize("change", ["touch", "replace", "add", "remove"])
def test_changed_source_is_noticed(tree, change, capsys):
    before = load_dataset("folder", tree)
    path = tree / "train" / "cat" / "0.png"
    if change == "touch":
        os.utime(path, ns=(0, 0))
    elif change == "replace":
        path.write_bytes((tree / "train" / "dog" / "2.png").read_bytes())
    elif change == "add":
        (tree / "train" / "cat" / "9.png").write_bytes(path.read_bytes())
    else:
        path.unlink()
    after = load_dataset("folder", tree)
    assert "its source files have changed" in capsys.readouterr().err
    assert (after.content_hash == before.content_hash) == (change == "touch")
    assert cache_path(tree)  # the stale file is replaced, not kept beside the new one


@pytest.mark.parametrize("damage", ["empty", "half", "no_footer", "pixel", "label"])
def test_damaged_cache_is_rebuilt(tree, damage, capsys):
    before = load_dataset("folder", tree)
    path, content = cache_path(tree), bytearray(cache_path(tree).read_bytes())
    if damage == "pixel":
        content[10] ^= 1
    elif damage == "label":
        content[before.pixels.numel() + 8 * len(before)] ^= 1
    else:
        del content[{"empty": 0, "half": len(content) // 2, "no_footer": len(content) - 1}[damage] :]
    path.write_bytes(content)
    assert load_dataset("folder", tree).content_hash == before.content_hash
    assert "it is damaged" in capsys.readouterr().err
    assert load_dataset("folder", tree).content_hash == before.content_hash
    assert "damaged" not in capsys.readouterr().err


def test_failed_decoding_leaves_no_file(tree):
    (tree / "train" / "dog" / "2.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be decoded"):
        load_dataset("folder", tree)
    assert [path.suffix for path in (tree / ".lgfast_cache").iterdir()] == [".lock"]


def test_full_disk_keeps_the_old_cache_and_says_so(tree, monkeypatch):
    before = load_dataset("folder", tree)
    os.utime(tree / "train" / "cat" / "0.png", ns=(0, 0))
    old_bytes = cache_path(tree).read_bytes()

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_file, "write_pixels", full_disk)
    with pytest.raises(OSError, match=r"no space left for the image cache .*LGFAST_CACHE"):
        load_dataset("folder", tree)
    assert cache_path(tree).read_bytes() == old_bytes
    monkeypatch.undo()
    assert load_dataset("folder", tree).content_hash == before.content_hash


def test_interrupted_writer_is_replaced(tree):
    load_dataset("folder", tree)
    path = cache_path(tree)
    path.rename(path.with_name(path.name + ".partial"))  # what a killed process leaves
    assert len(load_dataset("folder", tree)) == 6
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".lgfast", ".lock"]


RACE = """
import sys, time
from pathlib import Path
from lgfast.data import load_dataset
Path(sys.argv[2]).touch()
while not Path(sys.argv[3]).exists():
    time.sleep(0.01)
print(load_dataset("folder", sys.argv[1]).content_hash)
"""


def test_two_processes_starting_at_once_decode_once(tree, tmp_path):
    start = tmp_path / "start"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tree), str(tmp_path / f"ready{i}"), str(start)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    while not all((tmp_path / f"ready{i}").exists() for i in range(2)):
        time.sleep(0.01)
        assert all(process.poll() is None for process in processes)
    start.touch()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert outputs[0][0] == outputs[1][0] == load_dataset("folder", tree).content_hash + "\n"
    assert sum("cached 6 images" in err for _, err in outputs) == 1


def test_cache_folder_prefers_the_environment_then_the_root(tree, tmp_path, monkeypatch):
    assert cache.cache_folder(tree) == tree / ".lgfast_cache"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cache.cache_folder(tree) == cache.Path.home() / ".cache" / "lgfast"
    monkeypatch.setenv("LGFAST_CACHE", str(tmp_path / "fast"))
    assert cache.cache_folder(tree) == tmp_path / "fast"


def test_map_in_order_keeps_order_and_bounds_what_waits():
    started = []
    results = map_in_order(lambda i: started.append(i) or -i, range(200), num_workers=2)
    assert next(results) == 0
    assert len(started) <= 2 * 8 + 1
    assert list(results) == [-i for i in range(1, 200)]


def test_progress_prints_lines_off_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("lgfast.data.decode.SECONDS_BETWEEN_LINES", -1.0)
    assert list(cache.show_progress([1, 2], 2, "decoding x")) == [1, 2]
    assert capsys.readouterr().err == "decoding x: 1 of 2\ndecoding x: 2 of 2\n"
