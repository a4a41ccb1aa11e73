"""Small faithful copies of the datasets' layouts on disk."""

import pickle

import numpy as np
from PIL import Image


def random_image(rng, height=8, width=8):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_cifar100(root, num_train=20, num_test=10, num_classes=5, protocol=4):
    """cifar-100-python/{train,test,meta}; returns {split: (images [n, 32, 32, 3], labels)}."""
    rng, folder, content = np.random.default_rng(0), root / "cifar-100-python", {}
    folder.mkdir(parents=True)
    for split, count in (("train", num_train), ("test", num_test)):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = [i % num_classes for i in range(count)]
        batch = {b"data": images.transpose(0, 3, 1, 2).reshape(count, -1).copy(), b"fine_labels": labels}
        (folder / split).write_bytes(pickle.dumps(batch, protocol=protocol))
        content[split] = images, labels
    names = {b"fine_label_names": [f"name{k}".encode() for k in range(num_classes)]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=protocol))
    return content


def write_cifar10(root, per_batch=4):
    rng, folder = np.random.default_rng(1), root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {b"data": rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8), b"labels": list(range(per_batch))}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = {b"label_names": [f"name{k}".encode() for k in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))


def write_folder(root, classes=("cat", "dog"), train=3, test=2, test_name="test", suffix=".png"):
    """<root>/train/<class>/i.png and <root>/<test_name>/<class>/i.png, images of several sizes."""
    rng = np.random.default_rng(2)
    for split, count in (("train", train), (test_name, test)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random_image(rng, 6 + i, 9)).save(root / split / name / f"{i}{suffix}")
