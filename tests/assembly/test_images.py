"""The parts of a run's images belong together."""

import pytest

from lgfast.assembly import images
from lgfast.config import Config, replace
from lgfast.data import load_dataset
from tests.data.layouts import write_folder


def test_parts_that_were_read_with_other_classes_are_refused(tmp_path, monkeypatch):
    """As where a class is added between the reading of the two."""
    write_folder(tmp_path, train=5)

    def load(name, root, split, **options):
        if split == "test":
            (tmp_path / "train" / "ant").mkdir()
        return load_dataset(name, root, split, **options)

    monkeypatch.setattr(images, "load_dataset", load)
    config = replace(Config(), {"data.dataset": "folder", "data.root": str(tmp_path)})
    with pytest.raises(ValueError, match=r"data.root: .*-train and .*-test were read with other classes \(ant\)"):
        images.load_splits(config)
