"""Keep a network's logits for labelled images, so that any score can be computed later."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lgfast.data.image_set import LabelledImages
from lgfast.records.files import atomic_path

FILE = "logits.npz"


@dataclass(frozen=True)
class Answers:
    """Logits and labels of n images and K classes, in the order of the images.

    Attributes:
        logits: float32 [n, K].
        labels: int64 [n], the true classes; bool [n, K] where an image may have several.
        class_names: K names.
        files: n paths, or none where the images have no files of their own.
        about: names the images, e.g. "cifar100, test".
    """

    logits: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    files: tuple[str, ...] = ()
    about: str = ""

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, images: LabelledImages, about: str) -> Answers:
        """Make answers from logits [n, K] and labels [n] or [n, K], on the CPU, in the order of the images."""
        known = labels.numpy() if labels.ndim == 1 else labels.numpy() > 0
        return cls(logits.numpy(), known, images.class_names, tuple(map(str, images.paths or ())), about)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return self.labels.ndim == 2

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The softmax of the logits, float64 [n, K]; their sigmoid where an image may have several classes."""
        logits = torch.from_numpy(self.logits).double()
        return (logits.sigmoid() if self.is_multi_label else logits.softmax(1)).numpy()

    @cached_property
    def named(self) -> np.ndarray:
        """The likeliest class of each image, int64 [n]."""
        return self.logits.argmax(1)

    @property
    def is_hit(self) -> np.ndarray:
        """bool [n]: whether the likeliest class is the image's, or one of them."""
        if self.is_multi_label:
            return self.labels[np.arange(len(self.labels)), self.named]
        return self.named == self.labels

    @cached_property
    def are_named(self) -> np.ndarray:
        """bool [n, K]: the likeliest class; of several those more likely than not."""
        if self.is_multi_label:
            return self.logits > 0
        return self.named[:, None] == np.arange(len(self.class_names))

    @cached_property
    def are_there(self) -> np.ndarray:
        """bool [n, K]: the true classes."""
        return self.labels if self.is_multi_label else self.labels[:, None] == np.arange(len(self.class_names))

    def class_top1(self) -> dict[str, float]:
        """Return the share of each class's images that were named so in percent, for classes that have images."""
        there, hits = self.are_there.sum(0), (self.are_there & self.are_named).sum(0)
        return {name: 100 * float(hits[i] / there[i]) for i, name in enumerate(self.class_names) if there[i]}


def write_answers(folder: Path, answers: Answers) -> None:
    """Write logits.npz: logits, labels, class_names, files and about."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / FILE) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            logits=answers.logits,
            labels=answers.labels,
            class_names=np.array(answers.class_names, dtype=np.str_),
            files=np.array(answers.files, dtype=np.str_),
            about=np.array(answers.about),
        )


def read_answers(folder: Path) -> Answers | None:
    """Read what `write_answers` wrote; return None where there is no file.

    Raises:
        ValueError: the file is damaged; it is named.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            names, files = (tuple(found[name].tolist()) for name in ("class_names", "files"))
            return Answers(found["logits"], found["labels"], names, files, str(found["about"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and evaluate the run again") from None
