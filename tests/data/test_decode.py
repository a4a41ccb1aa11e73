"""Decoding one file: every kind as Pillow has it, what is refused and with which words, turning and reducing."""

import io
import os
import socket
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from lgfast.data import load_dataset, load_files
from lgfast.data import read as reading
from lgfast.data.decode import Decoding, decode_image
from lgfast.data.read import UnreadableError
from tests.data.layouts import write_folder
from tests.data.pictures import HEIGHT, WIDTH, encode, kinds, turned_jpeg


def written(tmp_path, content, name="picture"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", kinds())
def test_every_kind_is_what_pillow_shows(tmp_path, name):
    got = decode_image(written(tmp_path, kinds()[name], name))
    if name in ("deep.pgm", "ten_bits.pgm"):
        expected = [[[0] * 3, [100] * 3, [255] * 3]]
    elif name.startswith("deep"):
        deep = np.asarray(Image.open(io.BytesIO(kinds()[name]))).astype(float)
        expected = np.rint(deep / 257)[..., None].repeat(3, axis=2)
    else:
        expected = np.asarray(Image.open(io.BytesIO(kinds()[name])).convert("RGB"))
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stored_side", [0, 40])
def test_an_image_is_turned_as_its_tag_says_where_asked(tmp_path, orientation, stored_side):
    path = written(tmp_path, turned_jpeg(orientation))
    decoding = Decoding(exif_orientation=True, stored_side=stored_side)
    stored = decode_image(path, Decoding(stored_side=stored_side))
    expected = Image.fromarray(stored)
    expected.getexif()[274] = orientation
    assert np.array_equal(decode_image(path, decoding), np.asarray(ImageOps.exif_transpose(expected)))
    assert stored.shape == ((HEIGHT, WIDTH, 3) if stored_side == 0 else (40, 61, 3))


@pytest.mark.parametrize("tag", [0, 9, 700])
def test_a_tag_without_meaning_turns_nothing(tmp_path, tag):
    path = written(tmp_path, turned_jpeg(tag))
    assert decode_image(path, Decoding(exif_orientation=True)).shape == (HEIGHT, WIDTH, 3)


def test_a_damaged_tag_turns_nothing(tmp_path):
    content = turned_jpeg(6).replace(b"Exif\0\0MM", b"Exif\0\0\xff\xff")
    assert content != turned_jpeg(6)
    assert decode_image(written(tmp_path, content), Decoding(exif_orientation=True)).shape == (HEIGHT, WIDTH, 3)


def test_only_images_of_a_longer_side_are_reduced(tmp_path):
    path = written(tmp_path, kinds()["rgb.png"])
    whole = decode_image(path)
    assert np.array_equal(decode_image(path, Decoding(stored_side=HEIGHT)), whole)
    reduced = decode_image(path, Decoding(stored_side=30))
    assert np.array_equal(reduced, np.asarray(Image.fromarray(whole).resize((46, 30), Image.Resampling.LANCZOS)))


def test_a_large_jpeg_is_reduced_as_a_png_of_it(tmp_path):
    """libjpeg has decoded it at a fraction of its size, so they differ by a level or two on average."""
    x, y = np.meshgrid(np.linspace(0, 20, 800), np.linspace(0, 15, 600))
    image = Image.fromarray(np.uint8(127 + 60 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=2)))
    jpeg, png = written(tmp_path, encode(image, "JPEG", quality=95), "a"), written(tmp_path, encode(image, "PNG"), "b")
    ours, theirs = (decode_image(path, Decoding(stored_side=60)).astype(float) for path in (jpeg, png))
    assert ours.shape == (60, 80, 3)
    assert np.abs(ours - theirs).mean() < 2


def large_png(width, height):
    """The start of an image that would take its pixels' memory, if it were decoded."""
    small = encode(Image.new("RGB", (4, 4)), "PNG")
    header = small[12:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + small[24:29]
    return small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]


@pytest.mark.parametrize("size", [(13_300, 13_300), (60_000, 60_000)])
def test_an_image_that_would_fill_the_memory_is_named(tmp_path, size):
    write_folder(tmp_path)
    (tmp_path / "train" / "cat" / "bomb.png").write_bytes(large_png(*size))
    with pytest.raises(ValueError, match=r"cat/bomb.png: .*pixels.*data\.skip_broken"):
        load_dataset("folder", tmp_path)
    for load in (load_dataset, load_files):
        with pytest.warns(UserWarning, match=r"skipped 1 broken images: .*cat/bomb.png"):
            assert len(load("folder", tmp_path, skip_broken=True)) == 6


def test_the_bound_of_pixels_can_be_set(tmp_path):
    path = written(tmp_path, kinds()["rgb.png"])
    decode_image(path, Decoding(max_pixels=HEIGHT * WIDTH))
    with pytest.raises(ValueError, match=rf"picture: .*{WIDTH}x{HEIGHT} pixels are more than data.max_pixels, 5459"):
        decode_image(path, Decoding(max_pixels=HEIGHT * WIDTH - 1))


def test_an_image_too_large_for_the_views_is_named_or_skipped(tmp_path):
    write_folder(tmp_path)
    Image.new("RGB", (3, 900)).save(tmp_path / "train" / "cat" / "tall.png")
    decoding = Decoding(max_side=899)
    assert len(load_dataset("folder", tmp_path, decoding=Decoding(max_side=900))) == 7
    with pytest.raises(ValueError, match=r"cat/tall.png: 900x3 pixels .*data.stored_side.*data.skip_broken"):
        load_dataset("folder", tmp_path, decoding=decoding)
    for load in (load_dataset, load_files):
        with pytest.warns(UserWarning, match=r"skipped 1 broken images: .*tall.png"):
            assert len(load("folder", tmp_path, skip_broken=True, decoding=decoding)) == 6
    assert len(load_dataset("folder", tmp_path, decoding=Decoding(max_side=899, stored_side=2))) == 7


def test_a_format_that_starts_a_program_is_not_tried(tmp_path):
    post_script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"
    with pytest.raises(ValueError, match=r"cannot be decoded \(no image of a kind that is read\)"):
        decode_image(written(tmp_path, post_script, "picture.png"))


def fail_once(monkeypatch, error):
    """Reading the first file fails as with a wrong permission or a bad disk."""
    failed = []

    def fail(path, *arguments, **options):
        if not failed and str(path).endswith(".png"):
            failed.append(path)
            raise error
        return open(path, *arguments, **options)

    monkeypatch.setattr(reading, "open", fail, raising=False)


@pytest.mark.parametrize("skip_broken", [False, True])
@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_what_cannot_be_read_is_not_taken_for_broken(tmp_path, monkeypatch, skip_broken, error):
    write_folder(tmp_path)
    for load in (load_dataset, load_files):
        fail_once(monkeypatch, error)
        with pytest.raises(UnreadableError, match=rf"\.png: cannot be read \({error.strerror}\); it may be sound"):
            load("folder", tmp_path, skip_broken=skip_broken)
        assert len(load("folder", tmp_path, skip_broken=skip_broken)) == 6  # nothing of it was kept


def test_memory_that_does_not_suffice_is_no_fault_of_the_file(tmp_path, monkeypatch):
    def fail(image):
        raise MemoryError

    monkeypatch.setattr("lgfast.data.decode.to_rgb", fail)
    with pytest.raises(UnreadableError, match=r"picture: cannot be read .*memory"):
        decode_image(written(tmp_path, kinds()["rgb.png"]))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a device"])
def test_what_is_no_file_is_named_and_skipped_and_never_opened(tmp_path, kind):
    write_folder(tmp_path / "tree")
    path = tmp_path / "tree" / "train" / "cat" / "odd.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("only root makes devices")
    for load in (load_dataset, load_files):
        with pytest.raises(ValueError, match=r"cat/odd.png: is no file but a \w+"):
            load("folder", tmp_path / "tree")
        with pytest.warns(UserWarning, match=r"skipped 1 broken images: .*odd.png"):
            assert len(load("folder", tmp_path / "tree", skip_broken=True)) == 6
