"""Images keep the channels and the depth of their files, or are refused by name."""

import io

import numpy as np
import pytest
from PIL import Image

from lgfast.data import load_dataset
from lgfast.data.cache import cached
from lgfast.data.decode import Decoding, decode_image
from lgfast.data.image_set import ImageSet
from lgfast.data.rendering import how_rendered, rendered
from lgfast.data.sources.image_folder import folder_source
from lgfast.data.statistics import measure

STORED = Decoding(pixels="stored")
generator = np.random.default_rng(3)
GREY, DEEP = generator.integers(0, 256, (5, 7), np.uint8), generator.integers(0, 65536, (5, 7), np.uint16)
BANDS = generator.integers(0, 65536, (5, 7, 6), np.uint16)
COLOUR = generator.integers(0, 256, (5, 7, 4), np.uint8)


def write(path, array, **options):
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("grey.png", GREY, GREY[..., None]),
        ("grey.bmp", GREY, GREY[..., None]),
        ("deep.png", DEEP, DEEP[..., None]),
        ("deep.tif", DEEP, DEEP[..., None]),
        ("four.png", COLOUR, COLOUR),
        ("four.tif", COLOUR, COLOUR),
        ("rgb.png", COLOUR[..., :3], COLOUR[..., :3]),
        ("float.tif", DEEP.astype(np.float32) / 7, DEEP[..., None].astype(np.float32) / 7),
        ("signed.tif", DEEP.astype(np.int32) - 9000, DEEP[..., None].astype(np.float32) - 9000),
        ("flat.npy", DEEP, DEEP[..., None]),
        ("bands.npy", BANDS, BANDS),
        ("other.npy", BANDS.astype(">u2"), BANDS),
        ("fortran.npy", np.asfortranarray(BANDS), BANDS),
        ("hounsfield.npy", DEEP.astype(np.int64) - 30000, DEEP[..., None].astype(np.float32) - 30000),
        ("double.npy", BANDS / 3.0, (BANDS / 3.0).astype(np.float32)),
        ("mask.npy", DEEP > 9000, (DEEP > 9000).astype(np.uint8)[..., None]),
    ],
)
def test_values_are_those_that_were_written(tmp_path, name, array, expected):
    found = decode_image(write(tmp_path / name, array), STORED)
    assert found.dtype == expected.dtype and found.dtype.isnative and np.array_equal(found, expected)


def test_colours_of_a_palette_and_bits_are_values(tmp_path):
    picture = Image.fromarray(COLOUR[..., :3]).quantize(8)
    picture.save(tmp_path / "palette.png")
    assert np.array_equal(decode_image(tmp_path / "palette.png", STORED), np.asarray(picture.convert("RGB")))
    Image.fromarray(GREY > 99).save(tmp_path / "bits.png")
    assert np.array_equal(decode_image(tmp_path / "bits.png", STORED)[..., 0], (GREY > 99) * np.uint8(255))


def sixteen_bit_rgb():
    """A PNG of one pixel with 16 bits a channel, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + b"\x12\x34" * 3)) + chunk(b"IEND", b"")


def test_what_cannot_be_kept_is_refused_by_name(tmp_path):
    def refused(name, content, reason, decoding=STORED):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
        with pytest.raises(ValueError, match=rf"{name}: cannot be decoded \(.*{reason}"):
            decode_image(path, decoding)

    refused(
        "deep.png", sixteen_bit_rgb(), "16 bits a channel, of which Pillow keeps 8 in mode RGB; store it as an .npy"
    )
    refused("nan.npy", np.full((3, 3), np.nan), "values that are not finite")
    refused("huge.npy", np.full((3, 3), 1e300), "values that are not finite")
    refused("large.npy", np.full((3, 3), 1 << 25), "int64 with values above 16777216, which float32 does not hold")
    refused("complex.npy", np.full((3, 3), 1j), "an array of complex128; expected numbers")
    refused("flat.npy", np.zeros(3), r"an array of shape \[3\], expected \[h, w\] or \[h, w, channels\]")
    refused("empty.npy", np.zeros((0, 3)), r"an array of shape \[0, 3, 1\]")
    refused("wide.npy", np.zeros((2, 2, 1000)), "1000 channels, expected .* at most 999")
    refused("broken.npy", b"\x93NUMPY", "")
    content = io.BytesIO()
    np.save(content, np.array([[object()]]), allow_pickle=True)
    refused("object.npy", content.getvalue(), "allow_pickle=False")
    refused(
        "big.npy",
        np.zeros((30, 30)),
        "900|30x30 pixels are more than data.max_pixels",
        Decoding(pixels="stored", max_pixels=100),
    )
    refused(
        "other.npy", BANDS, r"its pixels are uint16x6, expected uint16x1 \(data.pixels\)", Decoding(pixels="uint16x1")
    )
    refused("rgb.npy", BANDS, "no image of a kind that is read", Decoding())


@pytest.mark.parametrize("array", [DEEP, BANDS, BANDS / 3.0], ids=["grey", "bands", "floats"])
def test_a_large_image_is_reduced_as_pillow_reduces_floats(tmp_path, array):
    found = decode_image(write(tmp_path / "a.npy", array), Decoding(pixels="stored", stored_side=3))
    planes = np.atleast_3d(array).astype(np.float32)
    expected = [
        np.asarray(Image.fromarray(planes[..., band]).resize((4, 3), Image.Resampling.LANCZOS))
        for band in range(planes.shape[2])
    ]
    expected = np.stack(expected, 2)
    if array.dtype == np.uint16:
        expected = expected.clip(0, 65535).round().astype(np.uint16)
    assert found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.fixture
def folder(tmp_path):
    """Two classes with five arrays of six bands each, of several sizes."""
    for number, name in enumerate("ab"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            write(tmp_path / "images" / name / f"{i}.npy", BANDS[: 3 + i] // (1 + number))
    return tmp_path / "images"


def load(root, pixels="stored", split="train"):
    return load_dataset("folder", root, split, cache_dir=root.parent / "cache", decoding=Decoding(pixels=pixels))


def test_a_cache_gives_back_what_was_stored(folder, capsys):
    first, again = load(folder), load(folder)
    assert isinstance(again, ImageSet) and str(again.format) == "uint16x6" and again.content_hash == first.content_hash
    assert capsys.readouterr().err.count("cached ") == 1
    for index, path in enumerate(again.paths):
        assert np.array_equal(again.image(index), np.load(path)) and again.image(index).dtype == np.uint16
    part = again.subset([3, 1])
    assert np.array_equal(part.image(0), again.image(3)) and part.format == again.format
    assert load(folder, "uint16x6").content_hash == first.content_hash
    assert "cached" not in capsys.readouterr().err


def test_images_of_other_kinds_are_named_with_both_files(folder):
    with pytest.raises(
        ValueError, match=r"data.pixels: the images of .*images are uint16x6, expected uint8x6, as those"
    ):
        load(folder, "uint8x6")
    write(folder / "b" / "x.png", GREY)
    with pytest.raises(
        ValueError, match=r"x.png is uint8x1, and .*npy is uint16x6; a network takes images of one format"
    ):
        cached(folder_source(folder, "train", 0, with_arrays=True), folder.parent / "cache", True, STORED)


def test_arrays_are_no_images_of_a_folder_of_pictures(folder):
    with pytest.raises(FileNotFoundError, match=r"no images .* or .npy arrays with data.pixels=stored"):
        load(folder, "rgb")
    write(folder / "a" / "x.png", GREY)
    write(folder / "b" / "x.png", GREY)
    assert [path.name for path in load(folder, "rgb").paths] == ["x.png", "x.png"]


def test_statistics_are_numpys(folder):
    images = load(folder)
    values = np.concatenate([images.image(i).reshape(-1, 6) for i in range(len(images))]).astype(np.float64)
    found = measure(images)
    assert found.value_range == (values.min(), values.max())
    unit = (values - values.min()) / (values.max() - values.min())
    assert np.allclose(found.mean, unit.mean(0)) and np.allclose(found.std, unit.std(0))
    asked = measure(images, (0, 65535))
    assert asked.value_range == (0, 65535) and np.allclose(asked.mean, values.mean(0) / 65535)


def test_an_image_that_is_the_same_everywhere_has_a_deviation(tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            write(tmp_path / "images" / name / f"{i}.npy", np.full((4, 4), 7.5))
    found = measure(load(tmp_path / "images"))
    assert found == ((7.5, 8.5), (0.0,), (1e-6,))


def test_pictures_are_rendered_as_they_say():
    assert rendered(COLOUR[..., :3]) is not None and np.array_equal(rendered(COLOUR[..., :3]), COLOUR[..., :3])
    assert how_rendered("rgb") == how_rendered("uint8x3") == ""
    assert np.array_equal(rendered(COLOUR), COLOUR[..., :3])
    assert (
        how_rendered("uint8x4")
        == "Pixels are uint8x4: pictures show their first three channels as red, green and blue."
    )
    assert np.array_equal(rendered(GREY[..., None]), np.repeat(GREY[..., None], 3, 2))
    low, high = np.percentile(DEEP, [1, 99])
    expected = np.interp(DEEP, [low, high], [0, 255])
    assert np.abs(rendered(DEEP[..., None])[..., 1] - expected).max() <= 0.5
    assert how_rendered("uint16x1").endswith("show their channel, from the 1st to the 99th percentile of each.")
    assert how_rendered("float32x2").startswith("Pixels are float32x2: pictures show their first channel, from")
    assert rendered(np.zeros((2, 2, 1), np.float32)).max() == 0


def test_a_table_of_labels_may_name_arrays(folder):
    names = [f"{name}/{i}.npy" for name in "ab" for i in range(5)]
    rows = "".join(f"{name},{'odd' if i % 2 else 'even'}\n" for i, name in enumerate(names))
    (folder / "labels.csv").write_text(f"file,label\n{rows}")
    options = {"cache_dir": folder.parent / "cache", "labels": "labels.csv", "test_fraction": 0, "decoding": STORED}
    images = load_dataset("folder", folder, "train", **options)
    assert str(images.format) == "uint16x6" and images.class_counts().tolist() == [5, 5]
    assert all(np.array_equal(images.image(index), np.load(path)) for index, path in enumerate(images.paths))
