"""The digits split: real scans, fixed, stratified, without overlap."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as load_scans

from lgfast.data import load_dataset
from lgfast.data.sources import digits
from tests.torch_process import run as run_python


def test_split_holds_every_scan_once():
    train, test = load_dataset("digits", split="train"), load_dataset("digits", split="test")
    assert (len(train), len(test)) == (1197, 600)
    ours = sorted(part.image(i)[..., 0].tobytes() for part in (train, test) for i in range(len(part)))
    theirs = sorted(np.round(scan * 255 / 16).astype(np.uint8).tobytes() for scan in load_scans().images)
    assert ours == theirs


def test_the_file_holds_what_scikit_learn_reads(monkeypatch):
    scans, labels = digits.read_scans()
    theirs = load_scans()
    assert np.array_equal(scans, theirs.images) and np.array_equal(labels, theirs.target)
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)  # a version that keeps it elsewhere
    again, labels_again = digits.read_scans()
    assert np.array_equal(again, scans) and np.array_equal(labels_again, labels)


def test_scikit_learn_is_not_imported():
    code = "import sys; from lgfast.data import load_dataset; load_dataset('digits'); print('sklearn' in sys.modules)"
    assert run_python(code).stdout == "False\n"


def test_images_are_grey_with_full_range_and_classes_balanced():
    train = load_dataset("digits")
    assert train.sizes.unique(dim=0).tolist() == [[8, 8]]
    assert all(np.ptp(train.image(i), axis=2).max() == 0 for i in range(len(train)))
    assert (int(train.pixels.min()), int(train.pixels.max())) == (0, 255)
    counts = torch.bincount(load_dataset("digits", split="test").labels)
    assert int(counts.max() - counts.min()) <= 4  # 174 to 183 scans of each digit, a third of each


def test_rejects_unknown_split_and_name():
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        load_dataset("digits", split="val")
    with pytest.raises(ValueError, match=r"name must be one of digits, .*got 'mnist'"):
        load_dataset("mnist")
