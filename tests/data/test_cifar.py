"""CIFAR readers: official layout, and a clear error for each way it can be broken."""

import os
import pickle
import warnings

import numpy as np
import pytest

from lgfast.data import load_dataset
from tests.data.layouts import write_cifar10, write_cifar100

pytestmark = pytest.mark.filterwarnings("ignore:.*md5.*")


def edit_train(root, **changes):
    path = root / "cifar-100-python" / "train"
    batch = pickle.loads(path.read_bytes())
    batch.update({key.encode(): value for key, value in changes.items()})
    path.write_bytes(pickle.dumps(batch))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_pixels_labels_and_names(tmp_path, split, protocol):
    images, labels = write_cifar100(tmp_path, protocol=protocol)[split]
    image_set = load_dataset("cifar100", tmp_path, split)
    assert image_set.class_names == tuple(f"name{k}" for k in range(5))
    assert image_set.labels.tolist() == labels
    assert np.array_equal(np.stack([image_set.image(i) for i in range(len(images))]), images)


def test_cifar10_joins_its_five_batches(tmp_path):
    write_cifar10(tmp_path)
    assert len(load_dataset("cifar10", tmp_path)) == 20
    assert len(load_dataset("cifar10", tmp_path, "test")) == 4
    assert load_dataset("cifar10", tmp_path).labels.tolist() == [0, 1, 2, 3] * 5


def test_root_may_be_the_folder_itself(tmp_path):
    write_cifar100(tmp_path)
    inner = load_dataset("cifar100", tmp_path / "cifar-100-python")
    assert inner.content_hash == load_dataset("cifar100", tmp_path).content_hash


def test_unofficial_md5_is_accepted_with_one_warning(tmp_path):
    write_cifar100(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # Python's own: the same text at the same line is shown once
        for split in ("train", "test", "train"):
            load_dataset("cifar100", tmp_path, split)
    assert [str(w.message) for w in caught if "md5 is not the published one" in str(w.message)]
    assert len(caught) == 1


def test_missing_dataset_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no meta in .*cifar-100-python; download .* from https://www"):
        load_dataset("cifar100", tmp_path)


def test_missing_file_is_named(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing .*data_batch_3; download"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_truncated_pickle_is_named(tmp_path, keep):
    write_cifar100(tmp_path)
    path = tmp_path / "cifar-100-python" / "train"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"train: truncated or damaged pickle .*delete it and download"):
        load_dataset("cifar100", tmp_path)


def test_label_out_of_range_is_named(tmp_path):
    write_cifar100(tmp_path)
    edit_train(tmp_path, fine_labels=[0] * 19 + [5])
    with pytest.raises(ValueError, match=r"train: labels must lie in \[0, 5\), got 5 for image 19"):
        load_dataset("cifar100", tmp_path)


def test_label_count_must_match(tmp_path):
    write_cifar100(tmp_path)
    edit_train(tmp_path, fine_labels=[0] * 19)
    with pytest.raises(ValueError, match="'fine_labels' must be a list of 20 labels, got 19"):
        load_dataset("cifar100", tmp_path)


def test_data_must_be_rows_of_3072_bytes(tmp_path):
    write_cifar100(tmp_path)
    edit_train(tmp_path, data=np.zeros((20, 784), np.uint8))
    with pytest.raises(ValueError, match=r"'data' must be uint8 \[n, 3072\], got uint8 \[20, 784\]"):
        load_dataset("cifar100", tmp_path)


def test_pickle_that_runs_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    write_cifar100(tmp_path)
    edit_train(tmp_path, data=Attack())
    with pytest.raises(ValueError, match=r"refused to load posix.mkdir"):
        load_dataset("cifar100", tmp_path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "name",
    ["numpy.f2py.__main__ dtype", "numpy.testing encode", "numpy.core.multiarray dtype", "numpy._globals ndarray"],
)
def test_no_module_is_imported_for_a_pickle(tmp_path, name):
    write_cifar100(tmp_path)
    path = tmp_path / "cifar-100-python" / "train"
    path.write_bytes(b"c" + name.replace(" ", "\n").encode() + b"\n.")
    with pytest.raises(ValueError, match=r"train: truncated or damaged pickle \(refused to load " + name.split()[0]):
        load_dataset("cifar100", tmp_path)


def test_an_encoding_is_not_looked_up(tmp_path):
    write_cifar100(tmp_path)
    path = tmp_path / "cifar-100-python" / "train"
    path.write_bytes(b"c_codecs\nencode\n(Vtext\nVrot13\ntR.")
    with pytest.raises(ValueError, match=r"train: truncated or damaged pickle \(refused to encode in 'rot13'\)"):
        load_dataset("cifar100", tmp_path)


@pytest.mark.parametrize("label", [1.5, 1.0, "1", True, None, [1], np.float64(1)])
def test_labels_are_whole_numbers(tmp_path, label):
    write_cifar100(tmp_path)
    edit_train(tmp_path, fine_labels=[0] * 19 + [label])
    with pytest.raises(ValueError, match=r"train: (labels must be whole numbers, got .* for image 19|.*damaged)"):
        load_dataset("cifar100", tmp_path)


def test_labels_may_be_numpy_s(tmp_path):
    write_cifar100(tmp_path)
    edit_train(tmp_path, fine_labels=[*np.arange(20) % 5])
    assert load_dataset("cifar100", tmp_path).labels.tolist() == [*range(5)] * 4


def test_a_pickle_does_not_choose_how_much_memory_it_takes(tmp_path):
    """One flipped bit makes a place of the memo large, and the unpickler's table grows up to it: here to 1 MiB."""
    write_cifar100(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"\x80\x02}r" + (1 << 16).to_bytes(4, "little") + b".")
    with pytest.raises(ValueError, match=r"train: truncated or damaged pickle \(refused place 65536 of the memo\)"):
        load_dataset("cifar100", tmp_path)
