"""The rule that ends guidance, against hand-made losses and the published formulas written out."""

import numpy as np
import pytest

from lgfast.guidance.stopping import AdaptiveStop, RelativeStop, smoothed_slope


def published(losses, window):
    """d_e by the three cases of the paper, as sums over numpy arrays; epochs count from 1."""
    loss = np.concatenate([[np.nan], losses])
    last = len(losses)
    deltas = np.full(last + 1, np.nan)
    for e in range(2, last + 1):
        deltas[e] = (loss[e] - loss[1:e].mean()) / e if e <= window else (loss[e] - loss[e - window]) / window
    if last <= window:
        return deltas[2 : last + 1].sum() / last
    if last < 2 * window:
        return deltas[last - window + 1 : last + 1].mean()
    return sum(loss[i] - loss[i - window] for i in range(last - window + 1, last + 1)) / window**2


@pytest.mark.parametrize("window", [4, 50])
def test_the_slope_is_the_published_one_in_each_of_its_cases(window):
    losses = 3 * np.exp(-np.arange(3 * window) / window) + 0.1 * np.random.default_rng(0).normal(size=3 * window)
    for last in range(2, 3 * window + 1):
        assert smoothed_slope(losses[:last].tolist(), window) == pytest.approx(
            published(losses[:last], window), rel=1e-9
        )


def test_slopes_by_hand():
    assert smoothed_slope([4.0, 2.0], window=4) == pytest.approx(-0.5)  # delta_2 = (2 - 4) / 2, over e = 2
    assert smoothed_slope([4.0, 2.0, 1.5], window=4) == pytest.approx((-1.0 - 0.5) / 3)  # delta_3 = (1.5 - 3) / 3
    # e = 3 > w = 2: delta_2 = (2 - 4) / 2 is the first of the last two deltas, delta_3 = (1.5 - 4) / 2
    assert smoothed_slope([4.0, 2.0, 1.5], window=2) == pytest.approx((-1.0 - 1.25) / 2)
    # e = 4 = 2 w: (1.5 - 4 + 1.25 - 2) / 4
    assert smoothed_slope([4.0, 2.0, 1.5, 1.25], window=2) == pytest.approx((1.5 - 4 + 1.25 - 2) / 4)


def test_one_epoch_has_no_slope():
    with pytest.raises(ValueError, match="two epochs at least, got 1"):
        smoothed_slope([1.0])


def last_guided_epoch(stop, losses):
    for epoch, loss in enumerate(losses, start=1):
        stop.append(loss)
        if stop.is_over():
            return epoch
    return None


def test_guidance_ends_at_the_first_epoch_on_the_other_side_of_the_threshold():
    losses = (3 * np.exp(-np.arange(300) / 60)).tolist()
    slopes = {epoch: published(losses[:epoch], 50) for epoch in range(2, 301)}
    below = [epoch for epoch in slopes if slopes[epoch] < -0.02]
    first = next(epoch for epoch in slopes if epoch > below[0] and slopes[epoch] >= -0.02)
    assert last_guided_epoch(AdaptiveStop(), losses) == first
    assert last_guided_epoch(AdaptiveStop(threshold=slopes[first]), losses) == first  # equal to it is enough
    assert last_guided_epoch(AdaptiveStop(threshold=slopes[first] + 1e-9), losses) > first


def test_noise_of_the_first_epochs_does_not_end_it():
    losses = [3.0, 3.05, *(3 * np.exp(-np.arange(1, 300) / 60)).tolist()]
    assert smoothed_slope(losses[:2]) > -0.02
    assert last_guided_epoch(AdaptiveStop(), losses) > 50


def test_a_loss_that_keeps_falling_is_guided_to_the_end():
    assert last_guided_epoch(AdaptiveStop(), [30 - 0.1 * epoch for epoch in range(300)]) is None


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_without_units_neither_size_nor_length_matters(scale):
    found = []
    for epochs in (150, 300):
        losses = [scale * float(np.exp(-epoch * 300 / epochs / 60)) for epoch in range(epochs)]
        found.append(last_guided_epoch(RelativeStop(epochs, threshold=-0.5), losses) / epochs)
    assert found[0] == pytest.approx(found[1], abs=0.01)
    assert 0.2 < found[0] < 0.9
