"""Lay pictures side by side, with a few words below each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lgfast.runtime.printable import printable

SIDE, COLUMNS, GAP = 128, 6, 10  # a picture's pixels, pictures in a row, pixels between them
FONT_SIZE, LINE = 13, 17
PAPER, INK = (255, 255, 255), (34, 34, 34)


def contact_sheet(
    pictures: Sequence[np.ndarray], captions: Sequence[Sequence[str]], columns: int = COLUMNS
) -> Image.Image:
    """Lay pictures side by side, with lines of text below each.

    Args:
        pictures: uint8 [h, w, 3] each; small ones are enlarged by whole pixels, large ones reduced.
        captions: lines below each, cut to its width.
    """
    columns = max(1, min(columns, len(pictures)))
    rows, lines = -(-len(pictures) // columns), max((len(caption) for caption in captions), default=0)
    width, height = SIDE + GAP, SIDE + LINE * lines + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        small = fitted(picture)
        sheet.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        for line, text in enumerate(caption):
            draw.text((left, top + SIDE + 2 + line * LINE), cut(printable(text), draw, font), INK, font)
    return sheet


def fitted(picture: np.ndarray) -> Image.Image:
    """Resize the picture to fit SIDE x SIDE, and keep its shape."""
    image = Image.fromarray(picture)
    factor = SIDE / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS)


def cut(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Return as much of the text as fits below a picture."""
    if draw.textlength(text, font) <= SIDE:
        return text
    while text and draw.textlength(f"{text}\N{HORIZONTAL ELLIPSIS}", font) > SIDE:
        text = text[:-1]
    return f"{text}\N{HORIZONTAL ELLIPSIS}"
