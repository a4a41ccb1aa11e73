"""Small faithful copies of the datasets' layouts on disk."""

import json
import pickle

import numpy as np
from PIL import Image
from scipy.io import savemat


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


def write_flowers(root, folder="flowers-102", num_train=6, num_valid=4, num_test=5):
    """jpg/, imagelabels.mat and setid.mat; image i (1-based) has label 1 + i % 102. Returns the ids per part."""
    rng, folder = np.random.default_rng(3), root / folder
    (folder / "jpg").mkdir(parents=True)
    total = num_train + num_valid + num_test
    for i in range(1, total + 1):
        Image.fromarray(random_image(rng, 20 + i, 30)).save(folder / "jpg" / f"image_{i:05d}.jpg")
    ids = rng.permutation(total).astype(np.uint16) + 1
    parts = dict(zip(("trnid", "valid", "tstid"), np.split(ids, [num_train, num_train + num_valid]), strict=True))
    savemat(folder / "setid.mat", {key: part[None] for key, part in parts.items()})
    savemat(folder / "imagelabels.mat", {"labels": (np.arange(1, total + 1, dtype=np.uint8) % 102 + 1)[None]})
    return parts


def write_tiny_imagenet(root, val_layout="flat", wnids=("n01443537", "n01629819", "n02321529"), train=3, val=2):
    """tiny-imagenet-200 with val/ "flat" as published, or sorted into "folders" or "folders/images"."""
    rng, folder = np.random.default_rng(4), root / "tiny-imagenet-200"
    for wnid in wnids:
        (folder / "train" / wnid / "images").mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for i in range(train):
            Image.fromarray(random_image(rng, 64, 64)).save(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
    lines = []
    for i in range(val * len(wnids)):
        wnid = wnids[(i * 2 + 1) % len(wnids)]
        parts = {"flat": ("images",), "folders": (wnid,), "folders/images": (wnid, "images")}[val_layout]
        path = folder.joinpath("val", *parts, f"val_{i}.JPEG")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_image(rng, 64, 64)).save(path)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    if val_layout == "flat":
        (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def write_chaoyang(root, train=6, test=4):
    rng, folder = np.random.default_rng(5), root / "chaoyang"
    for split, count in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True)
        entries = [{"name": f"{split}/{i}.JPG", "label": i % 4} for i in range(count)]
        for entry in entries:
            Image.fromarray(random_image(rng, 16, 16)).save(folder / entry["name"])
        (folder / f"{split}.json").write_text(json.dumps(entries))
    return folder
