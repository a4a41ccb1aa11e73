"""CIFAR-10 and CIFAR-100 from the official python pickles (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import hashlib
import io
import pickle
import pickletools
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lgfast.data.errors import one_line
from lgfast.data.sources.download import Remote, fetch_missing
from lgfast.data.sources.source import Records, Source, check_labels, find_folder, locate, require_files

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
IMAGE_SHAPE = (3, 32, 32)


class Layout(NamedTuple):
    torchvision_name: str
    folder: str
    archive: str
    splits: dict[str, tuple[str, ...]]
    meta: str
    label_key: str
    names_key: str


LAYOUTS = {
    "cifar10": Layout(
        torchvision_name="CIFAR10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        splits={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        meta="batches.meta",
        label_key="labels",
        names_key="label_names",
    ),
    "cifar100": Layout(
        torchvision_name="CIFAR100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        splits={"train": ("train",), "test": ("test",)},
        meta="meta",
        label_key="fine_labels",
        names_key="fine_label_names",
    ),
}


def cifar_source(name: str, root: Path, split: str, download: bool = False) -> Source:
    """The split of CIFAR-10 or CIFAR-100 found in root/<official folder name>, or downloaded there when asked."""
    layout = LAYOUTS[name]
    by_hand = f"unpack {layout.archive} from {PAGE} into {root}"
    help_text = f"download it (--data.download, or download=True), or {by_hand}"
    names = (*layout.splits[split], layout.meta)
    if download:
        fetch_missing(name, root, official_files(layout), lambda: not is_complete(root, layout, names), by_hand)
    folder = find_folder(root, [layout.folder], layout.meta, help_text)
    files = [folder / file for file in names]
    require_files(files, help_text)
    *batch_files, meta_file = files
    class_names = read_class_names(layout, meta_file, help_text)
    read = partial(read_cifar, layout, batch_files, meta_file, len(class_names), help_text)
    return Source(f"{name}-{split}", folder, files, class_names, read)


def is_complete(root: Path, layout: Layout, names: Sequence[str]) -> bool:
    folder = locate(root, [layout.folder], layout.meta)
    return folder is not None and all((folder / name).is_file() for name in names)


def official_files(layout: Layout) -> list[Remote]:
    import torchvision

    dataset = getattr(torchvision.datasets, layout.torchvision_name)
    return [Remote(dataset.url, dataset.tgz_md5, is_archive=True)]


def read_cifar(layout: Layout, batch_files: list[Path], meta_file: Path, num_classes: int, help_text: str) -> Records:
    batches = [read_batch(path, layout.label_key, num_classes, help_text) for path in batch_files]
    warn_unofficial(layout, [*batch_files, meta_file])
    images = np.concatenate([images for images, _ in batches])
    return Records(images, [label for _, labels in batches for label in labels])


def read_class_names(layout: Layout, meta_file: Path, help_text: str) -> tuple[str, ...]:
    names = load_pickle(meta_file, help_text).get(layout.names_key)
    if not isinstance(names, list) or not names:
        raise ValueError(f"{meta_file}: expected a list '{layout.names_key}', got {type(names).__name__}; {help_text}")
    return tuple(map(as_text, names))


def read_batch(path: Path, label_key: str, num_classes: int, help_text: str) -> tuple[np.ndarray, list[int]]:
    """Images uint8 [n, 32, 32, 3] and labels of one pickle, every assumption checked."""
    batch = load_pickle(path, help_text)
    data, labels = batch.get("data"), batch.get(label_key)
    num_values = int(np.prod(IMAGE_SHAPE))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (num_values,):
        got = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{path}: 'data' must be uint8 [n, {num_values}], got {got}; {help_text}")
    if not isinstance(labels, list) or len(labels) != len(data):
        got = str(len(labels)) if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"{path}: '{label_key}' must be a list of {len(data)} labels, got {got}; {help_text}")
    check_labels(labels, num_classes, path)
    return data.reshape(-1, *IMAGE_SHAPE).transpose(0, 2, 3, 1), labels


def latin1_bytes(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, which would import the module that an encoding's name asks for."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused to encode in {encoding!r:.60}")
    return text.encode("latin1")


def whole_number(dtype: np.dtype, data: bytes) -> int:
    """Stand in for NumPy's pickled scalars, as labels are stored."""
    return int(np.frombuffer(data, np.dtype(dtype))[0].__index__())


# what a pickled array refers to, in the official files (Python 2) and in those of NumPy before and since version 2
ALLOWED_GLOBALS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): latin1_bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0] for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): whole_number for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0] for core in ("core", "_core")},
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain values only: a dataset file has no business running code, nor importing any."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return ALLOWED_GLOBALS[module, name]


def check_memo(encoded: bytes) -> None:
    """Refuse a place in the memo that no pickle of this length needs: the unpickler would take memory up to it."""
    for opcode, argument, position in pickletools.genops(encoded):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > (position or 0):
            raise pickle.UnpicklingError(f"refused place {argument} of the memo")


def load_pickle(path: Path, help_text: str) -> dict[str, Any]:
    """The dictionary in a pickle file, with text keys."""
    try:
        encoded = path.read_bytes()
        check_memo(encoded)
        content = ArrayUnpickler(io.BytesIO(encoded), encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # a flipped bit can ask for anything: memory, an attribute, a sum of unlike things
        reason = one_line(error)
        raise ValueError(f"{path}: truncated or damaged pickle ({reason}); delete it and {help_text}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a pickled dictionary, got {type(content).__name__}; {help_text}")
    return {as_text(key): value for key, value in content.items()}


def as_text(value: Any) -> str:
    """Text as Python 3 has it; Python 2 wrote it as bytes."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def warn_unofficial(layout: Layout, files: list[Path]) -> None:
    """Warn once about files that are well-formed but not the published ones (repacked or reordered copies)."""
    import torchvision

    dataset = getattr(torchvision.datasets, layout.torchvision_name)
    official = dict([*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])])
    if any(hashlib.md5(path.read_bytes()).hexdigest() != official[path.name] for path in files):
        warnings.warn(  # the same text for both splits, so that Python shows it once
            f"{files[0].parent}: the files' md5 is not the published one; their content is well-formed and is used",
            stacklevel=2,
        )
