"""Folds are a partition with even classes; images of a group are never torn apart."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lgfast.data.folds import fold_numbers, folds_of, group_names
from lgfast.data.image_set import ImageSet


def image_set(paths):
    nothing = torch.zeros(len(paths or ()), dtype=torch.int64)
    return ImageSet("photos", nothing, nothing, nothing, nothing, ("a",), "", paths)


@settings(deadline=None, max_examples=25)
@given(counts=st.lists(st.integers(5, 40), min_size=1, max_size=4), folds=st.integers(2, 5))
def test_every_class_is_spread_evenly(counts, folds):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    numbers = fold_numbers(labels, folds)
    for label, count in enumerate(counts):
        inside = torch.bincount(numbers[labels == label], minlength=folds)
        assert int(inside.sum()) == count and int(inside.max() - inside.min()) <= 1


@settings(deadline=None, max_examples=25)
@given(data=st.data(), folds=st.integers(2, 4))
def test_a_group_is_in_one_fold(data, folds):
    groups = data.draw(st.lists(st.integers(0, 30).map(str), min_size=30, max_size=80))
    if len(set(groups)) < folds:
        return
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(groups), max_size=len(groups))))
    numbers = fold_numbers(labels, folds, groups)
    places = {group: {int(n) for g, n in zip(groups, numbers, strict=True) if g == group} for group in set(groups)}
    assert all(len(found) == 1 for found in places.values())


def test_groups_are_spread_by_class_too():
    """Ten groups of one class and ten of another: each of five folds has two of each."""
    groups = [f"plant{i // 6}" for i in range(120)]
    labels = torch.arange(120) // 60
    numbers = fold_numbers(labels, 5, groups)
    for fold in range(5):
        assert torch.bincount(labels[numbers == fold], minlength=2).tolist() == [12, 12]


def test_the_cut_depends_on_nothing_else():
    labels = torch.arange(50) % 5
    state = torch.random.get_rng_state()
    assert torch.equal(fold_numbers(labels, 5), fold_numbers(labels, 5))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("groups", "what"), [(None, "images, got 3"), (["a", "a", "b"], "groups, got 2")])
def test_too_few_are_refused(groups, what):
    with pytest.raises(ValueError, match=f"4 folds need as many {what}"):
        fold_numbers(torch.tensor([0, 0, 1]), 4, groups)


def test_small_classes_are_spread_without_a_word_and_too_small_ones_refused(recwarn):
    fold_numbers(torch.tensor([0] * 5 + [1] * 2), 5)
    assert not recwarn.list
    with pytest.raises(ValueError, match=r"^4 folds need a class of as many images, the largest has 3$"):
        fold_numbers(torch.tensor([0, 0, 0, 1, 1]), 4)


def test_names_of_groups():
    paths = ["/data/bee/p1_2.png", "/data/cat/p1_3.png", "/data/cat/p23-4.png", "/data/cat/other.png"]
    images = image_set(paths)
    assert group_names(images, r"p(\d+)", "/data") == ["1", "1", "23", "cat/other.png"]
    assert group_names(images, r"p\d+", "/data") == ["p1", "p1", "p23", "cat/other.png"]
    assert group_names(images, r"^([^/]+)", "/data") == ["bee", "cat", "cat", "cat"]  # of the path below the root
    with pytest.raises(ValueError, match=r"data.group: photos has no image files"):
        group_names(image_set(None), "p", "/data")


@pytest.mark.parametrize(("fraction", "folds"), [(0.2, 5), (0.1, 10), (0.5, 2), (0.9, 2), (0.01, 12)])
def test_a_share_as_a_number_of_folds(fraction, folds):
    assert folds_of(fraction, torch.arange(24) % 2) == folds
