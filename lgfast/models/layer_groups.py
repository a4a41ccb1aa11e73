"""A model's parameters by depth: those that are frozen, and how much slower the early ones learn."""

from __future__ import annotations

from timm.optim import param_groups_layer_decay
from torch import nn

from lgfast.models.taps import architecture, find_blocks


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Factor of each trained parameter's learning rate: decay ** (layers between it and the last one).

    Layers are timm's: the stem, each block, the head.
    Source: layer-wise decay of BEiT (arXiv 2106.08254), by timm's `param_groups_layer_decay`.
    """
    groups = param_groups_layer_decay(model, layer_decay=decay)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {name: scales[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def frozen_names(model: nn.Module, freeze: str) -> list[str]:
    """Names of the parameters that are not trained.

    Args:
        freeze: "": none; blocks:N: the first N blocks and what comes before them; backbone: all but the classifier.
    Raises:
        ValueError: the model has fewer blocks.
    """
    names = [name for name, _ in model.named_parameters()]
    if not freeze:
        return []
    if freeze == "backbone":
        trained = {id(p) for p in classifier(model).parameters()}
        return [name for name, p in model.named_parameters() if id(p) not in trained]
    count, blocks = int(freeze.removeprefix("blocks:")), find_blocks(model)
    if count > len(blocks):
        raise ValueError(f"optim.freeze: {architecture(model)} has {len(blocks)} blocks, got {freeze}")
    inside = {id(p) for block in blocks[:count] for p in block.parameters()}
    last = max(i for i, p in enumerate(model.parameters()) if id(p) in inside)  # parameters come in order of depth
    return names[: last + 1]


def classifier(model: nn.Module) -> nn.Module:
    """The modules that give the logits; a model with two heads has two."""
    found = model.get_classifier()
    return nn.ModuleList(found) if isinstance(found, tuple) else found


def freeze(model: nn.Module, what: str) -> list[nn.Module]:
    """Stop the training of `frozen_names`; they then cost no backward pass.

    Returns:
        The modules all of whose parameters are frozen, which also keep the statistics and the certainty of evaluation.
    """
    frozen = set(frozen_names(model, what))
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return [
        module
        for module in model.modules()
        if next(module.parameters(), None) is not None and not any(p.requires_grad for p in module.parameters())
    ]
