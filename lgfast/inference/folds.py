"""The networks of a cross-validation as one, whose probabilities are the mean of theirs."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgfast.assembly.networks import Trained, load_trained
from lgfast.records.checkpoint import CheckpointError

SUMMARY = "folds.csv"  # written once all folds are complete


class MeanNetwork(nn.Module):
    """Gives logits whose softmax is the mean of the members' probabilities.

    Args:
        members: networks that take the same images [B, C, S, S] and give logits [B, K].
        multi_label: images may have several classes; then the sigmoid of the logits is the mean.
    """

    def __init__(self, members: list[nn.Module], multi_label: bool = False) -> None:
        super().__init__()
        self.members, self.multi_label = nn.ModuleList(members), multi_label

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.stack([member(images) for member in self.members])
        if self.multi_label:
            return functional.logsigmoid(logits).logsumexp(0) - functional.logsigmoid(-logits).logsumexp(0)
        return logits.log_softmax(2).logsumexp(0) - math.log(len(self.members))


def fold_folders(folder: Path) -> list[Path]:
    """The runs of a cross-validation in its folder, in order; [] where the folder is none of one.

    Raises:
        CheckpointError: it is not complete.
    """
    found = [path for path in folder.glob("fold-*") if path.name[5:].isdigit() and path.is_dir()]
    if found and not (folder / SUMMARY).is_file():
        raise CheckpointError(f"{folder} holds a cross-validation that is not complete; run its command again")
    return sorted(found, key=lambda path: int(path.name[5:]))


def load_one_or_folds(source: Path) -> Trained:
    """`load_trained`; of the folder of a cross-validation, the mean of its networks.

    Raises:
        CheckpointError: as `load_trained`; or the cross-validation is not complete.
    """
    folders = fold_folders(source)
    if not folders:
        return load_trained(source)
    trained = [load_trained(folder) for folder in folders]
    about = f"mean of {len(trained)} networks, of {source}"
    model = MeanNetwork([one.model for one in trained], trained[0].config.data.is_multi_label)
    return trained[0]._replace(model=model, about=about, content_hash="")
