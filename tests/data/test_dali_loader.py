"""The dali loader on real JPEG files: the timm loader's batches, resume, shards, broken files. Runs without a GPU."""

import gc
import os
import weakref

import pytest
import torch
from PIL import Image

from lgfast.data import EvalLoader, build_train_loader, load_dataset, load_files
from lgfast.data.dali_loader import DaliDecoder
from lgfast.data.decode import AS_STORED, Decoding
from lgfast.spec.augment import AugmentSpec
from tests.data.layouts import write_folder
from tests.data.pictures import kinds, turned_jpeg
from tests.fake_cuda import fake_cuda
from tests.ops.real_images import photographs

Pipeline = pytest.importorskip("nvidia.dali.pipeline", reason="needs the extra [dali]").Pipeline
SPEC = AugmentSpec(image_size=28, teacher_size=4)
NUM_IMAGES, BATCH = 14, 4
NOISE_ERROR = 1e-5  # erase noise: float32 polynomials against float32 libm


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A class-per-folder tree of photographs of several sizes; one file is a PNG, one is grey."""
    root = tmp_path_factory.mktemp("photographs")
    for i in range(NUM_IMAGES):
        folder = root / "train" / ("lake" if i % 2 else "temple")
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(photographs()[i % 2][10 * i : 10 * i + 60 + i, 30 * i : 30 * i + 90 - 2 * i])
        if i == 3:
            picture.save(folder / f"{i}.png")
        else:
            (picture.convert("L") if i == 5 else picture).save(folder / f"{i}.jpg", quality=90)
    return root


def dali(root, epoch=0, **options):
    arguments = {"spec": SPEC, "batch_size": BATCH, "seed": 5, "workers": 1} | options
    loader = build_train_loader("dali", load_files("folder", root), **arguments)
    loader.set_epoch(epoch)
    return loader


def assert_same_batches(got, expected, tolerance=0.0):
    got, expected = list(got), list(expected)
    assert len(got) == len(expected)
    for left, right in zip(got, expected, strict=True):
        assert torch.equal(left.indices, right.indices) and torch.equal(left.labels, right.labels)
        torch.testing.assert_close(left.images, right.images, rtol=0, atol=tolerance)
        torch.testing.assert_close(left.teacher_images, right.teacher_images, rtol=0, atol=tolerance)


def test_all_loaders_give_the_same_batches(root, tmp_path):
    image_set = load_dataset("folder", root, cache_dir=tmp_path)
    for epoch in (0, 2):
        timm, resident = (build_train_loader(kind, image_set, SPEC, BATCH, seed=5) for kind in ("timm", "resident"))
        timm.set_epoch(epoch)
        resident.set_epoch(epoch)
        batches = list(dali(root, epoch))
        assert len(batches) == NUM_IMAGES // BATCH
        assert_same_batches(batches, timm, NOISE_ERROR)
        assert_same_batches(batches, resident)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resume_gives_the_remaining_batches(root, stop):
    loader = dali(root, epoch=1)
    batches = iter(loader)
    for _ in range(stop):
        next(batches)
    resumed = dali(root)
    resumed.load_state_dict(loader.state_dict())
    assert_same_batches(resumed, list(dali(root, epoch=1))[stop:])


def test_order_and_views_do_not_depend_on_the_batch_size(root):
    for name in ("images", "indices"):
        one, two = (torch.cat([getattr(batch, name) for batch in dali(root, 2, batch_size=size)]) for size in (4, 6))
        assert torch.equal(one, two) and len(one) == 12


def test_ranks_together_give_the_same_batches(root):
    for whole, *parts in zip(dali(root), *(dali(root, rank=rank, world=2) for rank in range(2)), strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part.images, whole.images[rank::2])


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "cut off"])
def test_broken_file_is_named_or_skipped_and_counted(root, tmp_path, content):
    broken = root / "train" / "lake" / "13.jpg"
    good = broken.read_bytes()
    try:
        broken.write_bytes(good[: len(good) // 3] if content is None else content)
        with pytest.raises(ValueError, match=r"13\.jpg: cannot be decoded"):
            list(dali(root, batch_size=NUM_IMAGES))
        with pytest.warns(UserWarning, match=r"skipped 1 broken images: .*13\.jpg"):
            files = load_files("folder", root, skip_broken=True)
        assert len(files) == NUM_IMAGES - 1
        with pytest.warns(UserWarning, match="1 "):
            image_set = load_dataset("folder", root, skip_broken=True, cache_dir=tmp_path)
        assert_same_batches(
            build_train_loader("dali", files, SPEC, BATCH, workers=1),
            build_train_loader("resident", image_set, SPEC, BATCH),
        )
    finally:
        broken.write_bytes(good)


def test_rejects_what_is_not_files(root):
    digits = load_dataset("digits")
    with pytest.raises(ValueError, match=r"the dali loader reads image files: pass load_files\(\.\.\.\), got ImageSet"):
        build_train_loader("dali", digits, SPEC, BATCH)
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        load_files("folder", root, "val")


@pytest.mark.parametrize(
    "decoding", [AS_STORED, Decoding(exif_orientation=True, stored_side=40)], ids=["as stored", "turned and reduced"]
)
def test_every_kind_of_file_is_the_resident_loader_s(tmp_path, decoding):
    folder = tmp_path / "train" / "picture"
    folder.mkdir(parents=True)
    for name, content in kinds().items():
        (folder / name).write_bytes(content)
    for orientation in range(1, 9):
        (folder / f"turned{orientation}.jpg").write_bytes(turned_jpeg(orientation))
    decoded = load_dataset("folder", tmp_path, decoding=decoding)
    files = load_files("folder", tmp_path, decoding=decoding)
    assert len(files) == len(decoded) == len(kinds()) + 8
    assert (files.content_hash == load_files("folder", tmp_path).content_hash) == (decoding == AS_STORED)
    batches = list(build_train_loader("dali", files, SPEC, len(files), workers=1))
    assert len(batches) == 1
    assert_same_batches(batches, build_train_loader("resident", decoded, SPEC, len(files)))
    evaluated = [batch.images for batch in EvalLoader(files, SPEC)]
    assert torch.equal(torch.cat(evaluated), torch.cat([batch.images for batch in EvalLoader(decoded, SPEC)]))


@pytest.mark.timeout(60)
def test_a_pipe_is_named(tmp_path):
    write_folder(tmp_path)
    files = load_files("folder", tmp_path)
    files.paths[1].unlink()
    os.mkfifo(files.paths[1])
    with pytest.raises(ValueError, match=r"1\.png: is no file but a pipe"):
        list(build_train_loader("dali", files, SPEC, len(files), workers=1))


@pytest.mark.parametrize(("device", "number"), [("cuda", 2), ("cuda:1", 1), ("cuda:0", 0)])
def test_a_gpu_pipeline_is_made_for_the_rank_s_gpu(device, number, monkeypatch):
    """The test goes as far as a machine without a GPU allows: up to the build."""
    monkeypatch.setattr(Pipeline, "build", lambda self: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    pipeline = DaliDecoder(iter([]), 4, 1, torch.device(device)).pipeline
    assert pipeline.device_id == number
    assert pipeline.exec_dynamic  # which may give the sizes of decoded images to the host


@pytest.mark.parametrize("stop", [1, NUM_IMAGES // BATCH, NUM_IMAGES])
def test_the_last_copy_is_over_before_the_pipeline_is_destroyed(root, monkeypatch, stop):
    """Runs on the stand-in for CUDA, whose copies end when the host waits for them; the caller may stop early too."""
    take, copies, destroyed = DaliDecoder.take, [], []

    def take_on_a_stream(decoder):
        if not copies:
            weakref.finalize(decoder.pipeline, lambda: destroyed.append(copies[-1].query()))
        batch, stream = take(decoder), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.zeros(1).add_(1)
        decoder.copied = stream.record_event()
        copies.append(decoder.copied)
        return batch

    monkeypatch.setattr(DaliDecoder, "take", take_on_a_stream)
    with fake_cuda(monkeypatch):
        batches = iter(dali(root))
        for _, _ in zip(range(stop), batches, strict=False):
            pass
        batches.close()
        gc.collect()
    assert destroyed == [True]


@pytest.mark.gpu
def test_gpu_gives_the_batches_of_the_cpu(root):
    """nvJPEG rounds its own way: a level or two per decoded pixel."""
    for left, right in zip(dali(root, device="cuda"), dali(root), strict=True):
        assert torch.equal(left.indices.cpu(), right.indices)
        assert (left.images.cpu() - right.images).abs().mean() < 0.05
