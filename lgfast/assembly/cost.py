"""Estimate the cost of a step before it runs, where a configuration asks for an unusual size.

A forward pass on torch's meta device, which computes only shapes, counts the operations.
"""

from __future__ import annotations

import warnings

import torch
from torch.utils.flop_counter import FlopCounterMode

from lgfast.config import Config, replace
from lgfast.models import create_model

MOST_FLOP = 1e17  # a step with more takes minutes on the fastest GPU, days on a CPU
MUCH_FLOP = {"cpu": 1e13, "cuda": 1e15}  # a step with more gets a warning
MOST_BYTES = 1 << 40  # the most memory for weights in training
MUCH_BYTES = 4 << 30
MUCH_DEPTH = 200  # more blocks get a warning, since they run one after another
BYTES_OF_A_WEIGHT = 16  # in float32 training: the weight, its gradient, two moments


def check_cost(config: Config, num_classes: int) -> None:
    """Warn of a step that takes long or much memory; raise a ValueError for one that no machine ends in reasonable
    time."""
    if not is_unusual(config):
        return
    augment, batch = config.augment, config.data.batch_size
    flop, weights = count(config, num_classes)
    is_deep = (config.model.depth or 0) > MUCH_DEPTH
    flop *= 3 * batch  # the backward pass takes twice as many as the forward
    num_bytes = batch * augment.channels * augment.image_size**2 * 4, weights * BYTES_OF_A_WEIGHT
    asked = "".join(f", model.{name}={value}" for name, value in config.model.shape_overrides().items())
    text = (
        f"augment.image_size={augment.image_size}, model.name={config.model.name}{asked}: a step of {batch} images "
        f"(data.batch_size) takes about {flop / 1e12:,.1f} TFLOP; in float32 its images are "
        f"{num_bytes[0] / 2**30:,.1f} GiB, and the weights in training {num_bytes[1] / 2**30:,.1f} GiB"
        + (f"; its {config.model.depth} blocks run one after another" if is_deep else "")
    )
    if flop > MOST_FLOP or max(num_bytes) > MOST_BYTES:
        raise ValueError(f"{text}; no machine does that in reasonable time: lower one of them")
    device = "cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu"
    if is_deep or flop > MUCH_FLOP[device] or max(num_bytes) > MUCH_BYTES:
        warnings.warn(text, stacklevel=2)


def is_unusual(config: Config) -> bool:
    """Whether sizes exceed those of usual models on small images. Only then is counting worth its time."""
    model = config.model
    tokens = (config.augment.image_size // (model.patch_size or 16)) ** 2
    return tokens > 1024 or (model.depth or 0) > 48 or (model.embed_dim or 0) > 2048


def count(config: Config, num_classes: int) -> tuple[float, int]:
    """Count the operations of one image's forward pass, and the weights; 0 for a model that the meta device cannot
    run."""
    size, more = config.augment.image_size, (config.model.depth or 0) - 2
    if more > 0:  # blocks are equal: each further one costs as much as the second
        one, two = (count(replace(config, {"model.depth": depth}), num_classes) for depth in (1, 2))
        return two[0] + more * (two[0] - one[0]), two[1] + more * (two[1] - one[1])
    try:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            channels = {} if config.channels == 3 else {"in_chans": config.channels}
            model = create_model(
                config.model.name, num_classes, size, **channels, **config.model.shape_overrides()
            ).eval()
            model(torch.zeros(1, getattr(model, "in_chans", 3), size, size))
    except Exception:  # building the model will say what does not fit
        return 0.0, 0
    return counter.get_total_flops(), sum(parameter.numel() for parameter in model.parameters())
