"""The cache: decode once, notice every change and damage, never leave half a file, survive a race."""

import errno
import multiprocessing
import os
import shutil
import stat
import threading
import time

import pytest
import torch
from PIL import Image

from lgfast.data import cache, cache_file, cache_size, load_dataset
from lgfast.data.decode import AS_STORED, Decoding, map_in_order
from lgfast.runtime.shared_files import owners
from tests.data.layouts import write_folder, write_tiny_imagenet


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.delenv("LGFAST_CACHE", raising=False)
    write_folder(tmp_path / "tree")
    return tmp_path / "tree"


def cache_path(tree):
    (path,) = (tree / ".lgfast_cache").glob("*.lgfast")
    return path


def forbid_decoding(monkeypatch):
    def decode(path, decoding):
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
    load_dataset("folder", tree).pixels.zero_()
    assert load_dataset("folder", tree).pixels.any()


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


@pytest.mark.parametrize(
    ("name", "write", "added"),
    [("folder", write_folder, "ant"), ("tiny_imagenet", write_tiny_imagenet, "n00000001")],
)
def test_a_class_that_train_gains_renumbers_the_cached_test_part(tmp_path, name, write, added):
    """No file of the test part changes."""
    root = write(tmp_path) or tmp_path
    before = load_dataset(name, tmp_path, "test")
    (root / "train" / added).mkdir()
    shutil.copy(next((root / "train").rglob("*0.*")), root / "train" / added / "0.png")
    train, after = load_dataset(name, tmp_path), load_dataset(name, tmp_path, "test")
    assert after.class_names == train.class_names == (added, *before.class_names)
    assert after.labels.tolist() == [label + 1 for label in before.labels.tolist()]


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


@pytest.mark.parametrize("name", [".{}.0123456789abcdef.partial", "{}.partial"])
def test_what_a_killed_writer_leaves_is_removed(tree, name):
    load_dataset("folder", tree)
    path = cache_path(tree)
    path.rename(path.with_name(name.format(path.name)))
    assert len(load_dataset("folder", tree)) == 6
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".lgfast", ".lock"]


KEYS = ("source", "fingerprint", "skipped", "num_images", "num_bytes", "class_names", "name", "content_hash")


@pytest.mark.parametrize("place", KEYS)
def test_a_cache_whose_footer_lacks_a_key_or_lies_is_rebuilt(tree, place, capsys):
    before = load_dataset("folder", tree)
    path, content = cache_path(tree), cache_path(tree).read_bytes()
    at = content.rindex(f'"{place}"'.encode()) + 1
    value = at + len(place) + 3
    for where, byte in [(at, b"?"), *((value, byte) for byte in (b"9", b"n", b"?"))]:
        path.write_bytes(content[:where] + byte + content[where + 1 :])
        after = load_dataset("folder", tree)
        assert after.content_hash == before.content_hash and torch.equal(after.pixels, before.pixels)
        assert "rebuilding the image cache" in capsys.readouterr().err


def test_a_cache_of_a_stranger_is_not_believed(tree, monkeypatch, capsys):
    """The folder may be one where anybody can write; here all files belong to a user who is not trusted."""
    before = load_dataset("folder", tree)
    planted = load_dataset("folder", tree)
    planted.pixels.zero_()
    path = cache_path(tree)
    with path.open("r+b") as file:
        file.write(bytes(8))
    monkeypatch.setattr(cache, "owners", lambda *folders: frozenset({12345}))
    built = []
    monkeypatch.setattr(cache, "build_cache", lambda *a: built.append(a))
    with pytest.raises(cache_file.UselessCacheError, match=r"it belongs to user \d+, who is not trusted with it"):
        load_dataset("folder", tree)
    assert built and "rebuilding the image cache" in capsys.readouterr().err
    monkeypatch.undo()
    assert load_dataset("folder", tree).content_hash == before.content_hash


@pytest.mark.parametrize("is_chosen", [False, True])
def test_the_owner_of_a_chosen_folder_is_trusted(tree, tmp_path, monkeypatch, is_chosen):
    asked = []
    monkeypatch.setattr(cache, "owners", lambda *folders: asked.append(folders) or owners(*folders))
    load_dataset("folder", tree, cache_dir=tmp_path / "chosen" if is_chosen else None)
    assert asked == [(tree / "train", tmp_path / "chosen") if is_chosen else (tree / "train",)]


@pytest.mark.parametrize("place", ["", ".lock"])
def test_a_link_in_the_place_of_a_file_is_not_followed(tree, tmp_path, place):
    load_dataset("folder", tree)
    victim, path = tmp_path / "victim", cache_path(tree)
    path.rename(victim)
    before = victim.read_bytes()
    path.with_name(path.name + place).unlink(missing_ok=True)
    path.with_name(path.name + place).symlink_to(victim)
    if place == ".lock":
        with pytest.raises(OSError, match=r"\.lock: is a symbolic link; remove it"):
            load_dataset("folder", tree)
    else:
        assert len(load_dataset("folder", tree)) == 6 and not path.is_symlink()
    assert victim.read_bytes() == before


def test_a_cache_has_the_mode_of_the_umask(tree):
    before = os.umask(0o027)
    try:
        load_dataset("folder", tree)
        assert stat.S_IMODE(cache_path(tree).stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_a_readable_cache_of_another_user_is_read(tree, monkeypatch):
    """This process may write neither to its folder nor to its lock."""
    before, opened = load_dataset("folder", tree).content_hash, os.open

    def deny(path, flags, *arguments, **options):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", deny)
    assert load_dataset("folder", tree).content_hash == before
    cache_path(tree).with_name(cache_path(tree).name + ".lock").unlink()
    assert load_dataset("folder", tree).content_hash == before
    os.utime(tree / "train" / "cat" / "0.png", ns=(0, 0))
    with pytest.raises(OSError, match=r"the image cache .* cannot be written .*denied\); set LGFAST_CACHE"):
        load_dataset("folder", tree)


def test_two_processes_starting_at_once_decode_once(tree, tmp_path, monkeypatch):
    real_build, log, context = cache.build_cache, tmp_path / "log", multiprocessing.get_context("fork")
    start, hashes = context.Barrier(2), context.Queue()

    def logged_build(*arguments):
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.2)  # the other process arrives meanwhile
        real_build(*arguments)

    def load():
        start.wait()
        hashes.put(load_dataset("folder", tree).content_hash)

    monkeypatch.setattr(cache, "build_cache", logged_build)
    processes = [context.Process(target=load) for _ in range(2)]
    for process in processes:
        process.start()
    got = {hashes.get(timeout=300) for _ in processes}
    for process in processes:
        process.join(timeout=300)
    assert got == {load_dataset("folder", tree).content_hash}
    assert log.read_text() == "built\n"


def test_killed_writer_neither_blocks_nor_corrupts(tree, tmp_path, monkeypatch):
    real_decode, context = cache.decode_image, multiprocessing.get_context("fork")
    reached = context.Event()

    def decode_until_killed(path, decoding):
        if path.name == "2.png":
            reached.set()
            time.sleep(60)
        return real_decode(path, decoding)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "decode_image", decode_until_killed)
        process = context.Process(target=load_dataset, args=("folder", tree))
        process.start()
        assert reached.wait(timeout=300)
        process.kill()
        process.join()
    assert [path.suffix for path in (tree / ".lgfast_cache").iterdir() if path.suffix == ".lgfast"] == []
    assert len(load_dataset("folder", tree)) == 6


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


def test_map_in_order_waits_for_nothing_where_its_caller_leaves():
    """The garbage collector may close it while a thread starts, and the end of a thread needs the same lock."""
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def work(i):
        if i == 1:
            begun.set()
            may_end.wait(20)
            ended.append(i)
        return i

    results = map_in_order(work, range(20), num_workers=1)
    assert next(results) == 0 and begun.wait(20)
    results.close()
    assert not ended
    may_end.set()


def test_progress_prints_lines_off_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("lgfast.data.decode.SECONDS_BETWEEN_LINES", -1.0)
    assert list(cache.show_progress([1, 2], 2, "decoding x")) == [1, 2]
    assert capsys.readouterr().err == "decoding x: 1 of 2\ndecoding x: 2 of 2\n"


@pytest.mark.parametrize("decoding", [AS_STORED, Decoding(stored_side=4)])
def test_the_size_is_said_before_anything_is_written(tree, monkeypatch, capsys, decoding):
    paths = sorted((tree / "train").rglob("*.png"))

    def fail(*_):
        raise OSError("nothing is written")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="nothing"):
        patch.setattr(cache, "write_cache", fail)
        load_dataset("folder", tree, decoding=decoding)
    assert capsys.readouterr().err.startswith("decoding 6 images of tree-train, about 0 MB")
    load = load_dataset("folder", tree, decoding=decoding)
    assert cache_size.estimated_bytes(paths, decoding) == load.pixels.numel()
    monkeypatch.setattr(cache_size, "MUCH", 0)
    os.mkfifo(tree / "train" / "cat" / "pipe.png")
    (tree / "train" / "cat" / "broken.png").write_bytes(b"broken")
    capsys.readouterr()
    with pytest.warns(UserWarning, match="skipped 2"):
        load_dataset("folder", tree, decoding=decoding, skip_broken=True)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("decoding 8 images of tree-train, about 0 MB")
    assert first.endswith("than the views can use)") == (decoding == AS_STORED)


def test_some_sizes_stand_for_all(tmp_path):
    """2,000 files of one size: a few are opened."""
    path = tmp_path / "image.png"
    Image.new("RGB", (100, 50)).save(path)
    assert cache_size.estimated_bytes([path] * 2000, AS_STORED) == 2000 * 15_000
