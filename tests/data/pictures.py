"""One picture in many kinds of file."""

import functools
import io

import numpy as np
from PIL import Image

from tests.ops.real_images import photographs

HEIGHT, WIDTH = 60, 91


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey_16_bits(header, values=(0, 25700, 65535)):
    """A PGM of one row."""
    return header + np.array(values, ">u2").tobytes()


@functools.cache
def kinds():
    """name with its suffix -> content of a file; every kind that is read, in every mode that it is met in."""
    rgb = Image.fromarray(np.ascontiguousarray(photographs()[0][:HEIGHT, :WIDTH]))
    grey, palette, bits = rgb.convert("L"), rgb.convert("P", palette=Image.Palette.ADAPTIVE), rgb.convert("1")
    rgba, cmyk = rgb.copy(), rgb.convert("CMYK")
    rgba.putalpha(grey)
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16))
    return {
        **{f"sampling{n}.jpg": encode(rgb, "JPEG", subsampling=n) for n in range(3)},
        "progressive.jpeg": encode(rgb, "JPEG", progressive=True),
        "grey.jpe": encode(grey, "JPEG"),
        "print.jfif": encode(cmyk, "JPEG"),
        "rgb.png": encode(rgb, "PNG"),
        "grey.png": encode(grey, "PNG"),
        "palette.png": encode(palette, "PNG"),
        "clear_palette.png": encode(palette, "PNG", transparency=3),
        "clear_colour.png": encode(rgb, "PNG", transparency=(1, 2, 3)),
        "bits.png": encode(bits, "PNG"),
        "alpha.png": encode(rgba, "PNG"),
        "grey_alpha.png": encode(Image.merge("LA", [grey, grey]), "PNG"),
        "deep.png": encode(deep, "PNG"),
        "rgb.bmp": encode(rgb, "BMP"),
        "palette.bmp": encode(palette, "BMP"),
        "rgb.ppm": encode(rgb, "PPM"),
        "grey.pgm": encode(grey, "PPM"),
        "bits.pbm": encode(bits, "PPM"),
        "deep.pgm": grey_16_bits(b"P5 3 1 65535\n"),
        "ten_bits.pgm": grey_16_bits(b"P5 3 1 1023\n", (0, 401, 1023)),
        "plain.pnm": b"P3 2 1 255\n1 2 3 4 5 6\n",
        "rgb.gif": encode(palette, "GIF"),
        "moving.gif": encode(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        "rgb.tif": encode(rgb, "TIFF"),
        "packed.tiff": encode(rgb, "TIFF", compression="tiff_lzw"),
        "turned.tiff": encode(rgb, "TIFF", tiffinfo={274: 6}),
        "print.tiff": encode(cmyk, "TIFF"),
        "deep.tiff": encode(deep, "TIFF"),
        "rgb.webp": encode(rgb, "WEBP"),
        "alpha.webp": encode(rgba, "WEBP", lossless=True),
        "rgb.tga": encode(rgb, "TGA"),
        "rgb.jp2": encode(rgb, "JPEG2000"),
        "rgb.avif": encode(rgb, "AVIF"),
    }


def turned_jpeg(orientation):
    """A picture that its EXIF tag turns, and the same upright, by Pillow."""
    exif = Image.Exif()
    exif[274] = orientation
    return encode(Image.open(io.BytesIO(kinds()["sampling0.jpg"])), "JPEG", exif=exif)
