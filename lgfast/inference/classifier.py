"""Classify images with a trained network, from a run, a weights file, or an exported file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lgfast.config import Config, from_dict, to_dict
from lgfast.data import EvalLoader
from lgfast.data.image_set import image_set_from_images
from lgfast.inference.folds import load_one_or_folds
from lgfast.records.checkpoint import CheckpointError, weights_digest

DESCRIPTION = "lgfast.json"  # the name, within a torch.export file, of the configuration and the classes
METADATA, DIGEST = "lgfast", "lgfast_digest"  # likewise in an ONNX file, and the digest of its content
NO_MATCH = "its content does not match its digest; export it again"
DIGEST_PLACE = "where-the-digest-of-the-rest-goes"  # stands for the digest when that is computed


@dataclass(frozen=True)
class Classifier:
    """Gives class probabilities for images, which it transforms as the run's evaluation did.

    Attributes:
        logits: maps normalised images [B, C, S, S] float32 to logits [B, K].
        class_names: K names.
        config: the configuration of the run that trained it.
    """

    logits: Callable[[Tensor], Tensor]
    class_names: tuple[str, ...]
    config: Config
    device: torch.device

    @property
    def is_multi_label(self) -> bool:
        """Whether a picture may have several classes; then their probabilities do not sum to 1."""
        return self.config.data.is_multi_label

    @torch.no_grad()
    def probabilities(self, images: Sequence[np.ndarray], flip: bool = False, batch_size: int = 100) -> Tensor:
        """Return probabilities [n, K] float32 on the CPU, a row for each image.

        Args:
            images: [h, w, channels] each, of any size and the run's format of pixels (uint8 and 3 for RGB).
            flip: average over each image and its mirror image.
            batch_size: the number of images computed at a time.
        """
        parts = [self._probabilities(batch, flip) for batch in self._batches(images, batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, len(self.class_names))

    def _probabilities(self, batch: Tensor, flip: bool) -> Tensor:
        found = self._share(batch)
        if flip:
            found = (found + self._share(batch.flip(3))) / 2
        if not found.isfinite().all():
            raise ValueError("the network gives probabilities that are not finite: it is damaged, or had diverged")
        return found.cpu()

    def _share(self, batch: Tensor) -> Tensor:
        logits = self.logits(batch).float()
        return logits.sigmoid() if self.is_multi_label else logits.softmax(dim=1)

    def _batches(self, images: Sequence[np.ndarray], batch_size: int) -> Iterator[Tensor]:
        if len(images):
            loader = EvalLoader(
                image_set_from_images("images", images), self.config.augment, batch_size=batch_size, device=self.device
            )
            for batch in loader:
                yield batch.images


def load_classifier(source: Path, device: torch.device) -> Classifier:
    """Load a classifier from a run folder (its best epoch), a weights file, or a file that `lgfast.export` wrote.

    The folder of a cross-validation gives the mean of its networks.

    Raises:
        CheckpointError: the file is missing, damaged, or not written by lgfast.
    """
    if source.suffix == ".pt2":
        return load_program(source, device)
    if source.suffix == ".onnx":
        return load_onnx(source)
    trained = load_one_or_folds(source)
    model = trained.model.to(device).eval()
    return Classifier(model, trained.class_names, trained.config, device)


def describe(classifier: Classifier) -> str:
    """Describe a classifier within an exported file: enough to transform images and to name classes."""
    return json.dumps({"config": to_dict(classifier.config), "class_names": list(classifier.class_names)})


def read_description(source: Path, text: str | bytes | None) -> tuple[Config, tuple[str, ...]]:
    """Read the configuration and the classes that `describe` wrote."""
    try:
        found: dict[str, Any] = json.loads(text or "")
        return from_dict(found["config"]), tuple(found["class_names"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source}: holds no description by lgfast; export it with lgfast.export") from error


def load_program(source: Path, device: torch.device) -> Classifier:
    """Load a torch.export file; its operations are PyTorch's own."""
    extra = {DESCRIPTION: "", DIGEST: ""}
    if not zipfile.is_zipfile(source):
        raise CheckpointError(f"{source}: is no file of torch.export; export it again")
    try:
        program = torch.export.load(str(source), extra_files=extra)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source}: cannot be read ({str(error).splitlines()[0]}); export it again") from error
    config, class_names = read_description(source, extra[DESCRIPTION])
    digest = extra[DIGEST]
    if digest and (digest.decode() if isinstance(digest, bytes) else digest) != weights_digest(program.state_dict, {}):
        raise CheckpointError(f"{source}: is damaged: {NO_MATCH}")
    return Classifier(program.module().to(device), class_names, config, device)


def onnx_digest(content: bytes) -> str:
    """The digest of an ONNX file, as long as what stands in its place in `content`."""
    return blake2b(content, digest_size=32).hexdigest()[: len(DIGEST_PLACE)]


def load_onnx(source: Path) -> Classifier:
    """Load an ONNX file, which onnxruntime computes on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"{source}: ONNX files need onnxruntime; pip install 'lgfast[export]'") from error
    try:
        content = source.read_bytes()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error.strerror})") from error
    except Exception as error:  # onnxruntime's errors share no other base class
        raise CheckpointError(f"{source}: cannot be read ({str(error).splitlines()[0]}); export it again") from error
    metadata = session.get_modelmeta().custom_metadata_map
    config, class_names = read_description(source, metadata.get(METADATA))
    digest = metadata.get(DIGEST, "")
    if digest and digest != onnx_digest(content.replace(digest.encode(), DIGEST_PLACE.encode())):
        raise CheckpointError(f"{source}: is damaged: {NO_MATCH}")

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return Classifier(logits, class_names, config, torch.device("cpu"))
