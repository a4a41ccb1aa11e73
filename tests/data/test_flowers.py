"""Flowers-102: the train+val protocol, and a clear error for each way the official files can be broken."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from lgfast.data import load_dataset
from tests.data.layouts import write_flowers


def edit_mat(path, **changes):
    savemat(path, {key: value for key, value in (loadmat(path) | changes).items() if not key.startswith("__")})


@pytest.mark.parametrize("folder", ["flowers-102", "flowers", "."])
def test_train_is_train_then_validation(tmp_path, folder):
    parts = write_flowers(tmp_path, folder)
    train, test = load_dataset("flowers102", tmp_path), load_dataset("flowers102", tmp_path, "test")
    for image_set, ids in ((train, np.concatenate([parts["trnid"], parts["valid"]])), (test, parts["tstid"])):
        assert image_set.labels.tolist() == (ids % 102).tolist()
        for place, number in enumerate(ids):
            decoded = np.asarray(Image.open(tmp_path / folder / "jpg" / f"image_{number:05d}.jpg"))
            assert np.array_equal(image_set.image(place), decoded)
    assert train.num_classes == 102
    assert len(train.sizes.unique(dim=0)) > 1


def test_missing_files_say_where_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no setid.mat in .*flowers-102.*https://www.robots.ox.ac.uk"):
        load_dataset("flowers102", tmp_path)
    parts = write_flowers(tmp_path)
    (tmp_path / "flowers-102" / "jpg" / f"image_{parts['valid'][0]:05d}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=rf"missing .*image_{parts['valid'][0]:05d}.jpg"):
        load_dataset("flowers102", tmp_path)
    (tmp_path / "flowers-102" / "imagelabels.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing .*imagelabels.mat"):
        load_dataset("flowers102", tmp_path)


@pytest.mark.parametrize("name", ["setid.mat", "imagelabels.mat"])
@pytest.mark.parametrize("keep", [0, 60, 150, -8])
def test_truncated_mat_is_named(tmp_path, name, keep):
    write_flowers(tmp_path)
    path = tmp_path / "flowers-102" / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{name}: (truncated or damaged|no variable)"):
        load_dataset("flowers102", tmp_path)


def test_label_and_id_out_of_range_are_named(tmp_path):
    write_flowers(tmp_path)
    folder = tmp_path / "flowers-102"
    edit_mat(folder / "setid.mat", tstid=np.array([[1, 99]]))
    with pytest.raises(ValueError, match=r"setid.mat: 'tstid' must be whole and lie in \[1, 15\], got 99"):
        load_dataset("flowers102", tmp_path, "test")
    edit_mat(folder / "imagelabels.mat", labels=np.array([[1, 103]]))
    with pytest.raises(ValueError, match=r"imagelabels.mat: 'labels' must be whole and lie in \[1, 102\], got 103"):
        load_dataset("flowers102", tmp_path)
    edit_mat(folder / "imagelabels.mat", labels=np.array([[1.5] * 15]))
    with pytest.raises(ValueError, match=r"imagelabels.mat: 'labels' must be whole .*, got 1.5"):
        load_dataset("flowers102", tmp_path)
