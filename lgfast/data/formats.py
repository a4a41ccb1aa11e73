"""List kinds of image files: those that are read, and those that are named where they are left out."""

import functools

from PIL import Image

# Pillow tries these whatever a file is called; others of its formats start programs
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga",
    ".tif", ".tiff", ".webp",
}  # fmt: skip
ARRAY_SUFFIX = ".npy"
HEIF_SUFFIXES = {".heic", ".heif"}
OTHER_SUFFIXES = {
    ".arw", ".cr2", ".cr3", ".dng", ".eps", ".exr", ".hdr", ".j2k", ".jxl", ".nef", ".orf", ".psd", ".raf", ".rw2",
    ".svg", ".xcf",
}  # fmt: skip


@functools.cache
def formats() -> list[str]:
    """Return the FORMATS that this Pillow reads; with the package pillow-heif, HEIF too."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def image_suffixes(with_arrays: bool = False) -> set[str]:
    """Return the lower-case suffixes of files that count as images.

    Args:
        with_arrays: include .npy, which data.pixels=stored reads.
    """
    found = SUFFIXES | HEIF_SUFFIXES if "HEIF" in formats() else SUFFIXES
    return found | {ARRAY_SUFFIX} if with_arrays else found


def unread_suffixes() -> set[str]:
    """Return the suffixes of pictures of kinds that are not read."""
    return (OTHER_SUFFIXES | HEIF_SUFFIXES) - image_suffixes()
