"""Show images of any channels and depth as pictures of 8-bit RGB."""

import numpy as np

from lgfast.spec.pixels import PixelFormat, parse_format

DARKEST, BRIGHTEST = 1, 99  # percentiles of an image that become black and white, unless it has 8 bits


def rendered(image: np.ndarray) -> np.ndarray:
    """Return uint8 [h, w, 3] of an image [h, w, channels], as `how_rendered` says."""
    shown = image[..., :3] if image.shape[2] >= 3 else image[..., :1]
    if shown.dtype != np.uint8:
        low, high = np.percentile(shown, (DARKEST, BRIGHTEST))
        shown = ((shown.astype(np.float64) - low) / max(high - low, 1e-30) * 255).clip(0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))


def how_rendered(pixels: str) -> str:
    """Return a sentence on how pictures show pixels of a format (a value of data.pixels); "" for 8-bit RGB."""
    format = parse_format(pixels)
    if format is None or format == PixelFormat("uint8", 3):
        return ""
    which = "their channel" if format.channels == 1 else "their first channel"
    if format.channels >= 3:
        which = "their first three channels as red, green and blue"
    stretched = f", from the {DARKEST}st to the {BRIGHTEST}th percentile of each" if format.dtype != "uint8" else ""
    return f"Pixels are {format}: pictures show {which}{stretched}."
