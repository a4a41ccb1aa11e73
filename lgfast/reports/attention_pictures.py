"""Show where a network looks in some test images: attention rollout, and the heads of its last layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn

from lgfast.inference.attention import attention_maps, grid_side, rollout
from lgfast.records.files import atomic_path
from lgfast.reports.contact_sheet import SIDE, contact_sheet, fitted

MAX_HEADS = 6  # the most heads that a picture shows
MAPS = "attention_maps.npz"


class Looks(NamedTuple):
    """Where the class token looks in n images, or the mean over tokens where there is none. Sums over patches are 1.

    Attributes:
        rollout: [n, s, s]; None where layers differ in their numbers of tokens.
        heads: [n, H, s, s], of the last attention layer.
    """

    rollout: np.ndarray | None
    heads: np.ndarray


def find_looks(model: nn.Module, images: Tensor) -> Looks:
    """Find where a network looks in each of some images.

    Args:
        images: float [n, C, S, S].
    Raises:
        ValueError: the network has no attention that can be read, or its tokens are no square.
    """
    maps = attention_maps(model, images)
    name, last = list(maps.items())[-1]
    try:
        whole = on_patches(name, rollout(list(maps.values())))
    except ValueError:
        whole = None
    return Looks(whole, on_patches(name, last))


def on_patches(name: str, attention: Tensor) -> np.ndarray:
    """Reduce attention [..., N, M] of queries to keys to a map over patches [..., s, s]."""
    side = grid_side(name, attention.shape[-1])
    has_class_token = attention.shape[-1] > side**2
    rows = attention[..., 0, :] if has_class_token else attention.mean(-2)
    patches = rows[..., -(side**2) :]
    shares = patches / patches.sum(-1, keepdim=True)
    return shares.unflatten(-1, (side, side)).numpy()


def write_looks(looks: Looks, pictures: Sequence[np.ndarray], captions: Sequence[str], folder: Path) -> Path:
    """Write attention_maps.npz, and attention_maps.png with a row for each image.

    Args:
        pictures: uint8 [h, w, 3] each.
        captions: the text beside each picture.
    """
    arrays: dict[str, Any] = {"heads": looks.heads} | ({} if looks.rollout is None else {"rollout": looks.rollout})
    with atomic_path(folder / MAPS) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    heads = min(MAX_HEADS, looks.heads.shape[1])
    shown: list[np.ndarray] = []
    words: list[list[str]] = []
    for number, picture in enumerate(pictures):
        square = np.asarray(fitted(picture).resize((SIDE, SIDE), Image.Resampling.NEAREST))
        shown.append(square)
        words.append([captions[number]])
        if looks.rollout is not None:
            shown.append(overlay(square, looks.rollout[number]))
            words.append(["rollout"])
        shown += [overlay(square, looks.heads[number, head]) for head in range(heads)]
        words += [[f"head {head + 1}"] for head in range(heads)]
    path = folder / "attention_maps.png"
    with atomic_path(path) as temporary:
        contact_sheet(shown, words, columns=len(shown) // max(1, len(pictures))).save(temporary, "PNG")
    return path


def overlay(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Draw the picture in grey, in warmer colours where weights are higher, from their lowest to their highest
    value."""
    low, high = float(weights.min()), float(weights.max())
    scaled = (weights - low) / (high - low) if high > low else np.zeros_like(weights)
    heat = Image.fromarray((255 * scaled).astype(np.uint8)).resize(picture.shape[1::-1], Image.Resampling.BICUBIC)
    share = np.asarray(heat, np.float32)[..., None] / 255
    grey = picture.astype(np.float32).mean(-1, keepdims=True) * 0.6 + 30
    warm = np.concatenate([np.full_like(share, 255), 230 * share, np.zeros_like(share)], axis=-1)
    return np.clip(grey * (1 - 0.75 * share) + warm * 0.75 * share, 0, 255).astype(np.uint8)


def one_of_each(labels: Tensor, count: int) -> list[int]:
    """Return the index of the first image of up to `count` classes, spread over the classes that have images."""
    first = {label: index for index, label in reversed(list(enumerate(labels.tolist())))}
    order = [first[label] for label in sorted(first)]
    return [order[number * len(order) // count] for number in range(count)] if len(order) > count else order
