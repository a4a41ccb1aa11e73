"""The plot fits its curves, and hides none of them."""

import pytest

from lgfast.reports.curves import OTHERS, PALETTE, Curves, colors, draw, mean_curve, write_curves

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def panel(count, label="a"):
    return [
        Curves(f"{label * 150} $x_{{$ {number}", [([1, 2, 3], [20.0 + number, 31.0, 33.5 + number])], color)
        for number, color in enumerate(colors(count))
    ]


@pytest.mark.parametrize("panels", [{"": panel(1)}, {"": panel(30)}, {name: panel(2, name) for name in "abcdefg"}])
def test_names_stand_below_the_curves_and_inside_the_picture(panels):
    figure = draw(panels, "accuracy (%)")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, canvas = legend.get_window_extent(), figure.bbox
    assert canvas.x0 <= box.x0 and box.x1 <= canvas.x1 and canvas.y0 <= box.y0
    for axes in figure.axes:
        assert not axes.get_window_extent().overlaps(box)
        assert axes.get_window_extent().height > 200 or not axes.axison


def test_the_axis_fits_the_data():
    (axes,) = draw({"": panel(1)}, "accuracy (%)").axes
    low, high = axes.get_ylim()
    assert 18 < low <= 20 and 33.5 <= high < 36


def test_groups_without_a_colour_of_their_own_are_the_others():
    figure = draw({"": panel(len(PALETTE) + 3)}, "accuracy (%)")
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == len(PALETTE) + 1 and names[-1] == "others"
    assert [line.get_color() for line in figure.axes[0].lines][-3:] == [OTHERS] * 3


def test_the_mean_is_over_the_epochs_that_all_runs_were_judged_at():
    assert mean_curve([([1, 2, 4], [10, 20, 40]), ([2, 4, 6], [30, 50, 60])]) == ([2, 4], [25, 45])
    (axes,) = draw({"": [Curves("a", [([1, 2], [10, 20]), ([1, 2], [30, 50])], "C0")]}, "accuracy").axes
    thick = max(axes.lines, key=lambda line: line.get_linewidth())
    assert list(thick.get_ydata()) == [20, 35] and len(axes.lines) == 3


def test_runs_that_were_stopped_are_marked_and_a_single_epoch_is_seen():
    group = Curves("a", [([1, 2], [10, 20]), ([1], [30]), ([], [])], "C0", has_mean=False, stopped=frozenset({0}))
    figure = draw({"": [group]}, "accuracy")
    assert [line.get_marker() for line in figure.axes[0].lines] == ["x", "o", "None"]
    assert figure.legends[0].get_texts()[-1].get_text() == "stopped early"


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_suffix_chooses_the_kind_of_file(tmp_path, suffix, start):
    path = write_curves({"": panel(2)}, tmp_path / f"curves.{suffix}", "accuracy (%)")
    assert path.read_bytes().startswith(start)
