"""A contact sheet shows every picture whole, in its place."""

import numpy as np
import pytest

from lgfast.reports.contact_sheet import GAP, LINE, SIDE, contact_sheet


@pytest.mark.parametrize("shape", [(8, 8), (500, 500), (SIDE, SIDE)])
def test_pictures_keep_their_colours_and_places(shape):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [np.full((*shape, 3), colour, np.uint8) for colour in colours]
    sheet = contact_sheet(pictures, [("one", "x" * 200)] * 3, columns=2)
    width, height = SIDE + GAP, SIDE + 2 * LINE + GAP
    assert sheet.size == (2 * width + GAP, 2 * height + GAP)
    for number, colour in enumerate(colours):
        left, top = GAP + number % 2 * width, GAP + number // 2 * height
        assert set(sheet.crop((left, top, left + SIDE, top + SIDE)).get_flattened_data()) == {colour}


def test_pictures_keep_their_shape():
    sheet = contact_sheet([np.zeros((10, 40, 3), np.uint8)], [()])
    dark = np.asarray(sheet.convert("L")) < 128
    assert dark.any(1).sum() == SIDE // 4 and dark.any(0).sum() == SIDE
