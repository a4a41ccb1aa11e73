"""Block taps: the residual stream after chosen blocks of a student, as token maps without prefix tokens."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

# Where the paper does not tap first, middle and last: (architecture, number of blocks) -> flat block indices.
PAPER_LAYERS = {("pvt_tiny", 8): (0, 3, 7), ("pvt_v2_b0", 8): (0, 3, 7), ("cvt_13", 13): (0, 6, 11)}
# Their blocks keep tokens in an order of their own, so a block output is not a row-major map.
REORDERED = ("Hiera", "Nest")

TokenMap = tuple[Tensor, tuple[int, int]]


class ImageSizeError(ValueError):
    """A model cannot take images of the size asked for."""


class FeatureTaps:
    """Forward hooks that keep the outputs of chosen blocks until they are taken.

    Blocks are counted from 0 over all stages. A map is what the block returns: before any final or stage
    norm, prefix tokens (class, distillation, registers) removed, tokens row-major.

        taps = FeatureTaps(model, default_layers(model))
        logits = model(images)
        maps = taps.take()              # [(tokens [B, h*w, C], (h, w)), ...], views where the layout allows

    A forward overwrites what an earlier one left; `take` empties the taps, so no graph outlives its step.

    Args:
        model: any model in which blocks are found (`find_blocks`).
        layers: flat block indices; negative ones count from the end.
    Raises:
        ValueError: no blocks, or an index out of range.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]):
        blocks = find_blocks(model)
        self.layers = tuple(resolve_layer(layer, len(blocks)) for layer in layers)
        self._name = architecture(model)
        self._num_prefix_tokens = num_prefix_tokens(model)
        self._channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self._outputs: dict[int, object] = {}
        self._handles = [blocks[layer].register_forward_hook(partial(self._keep, layer)) for layer in set(self.layers)]

    def _keep(self, layer: int, module: nn.Module, args, output) -> None:
        self._outputs[layer] = output

    def take(self) -> list[TokenMap]:
        """The maps of the last forward, in the order of `layers`; the taps are empty afterwards."""
        missing = [layer for layer in self.layers if layer not in self._outputs]
        if missing:
            raise RuntimeError(f"FeatureTaps.take: block {missing[0]} of {self._name} has not run since the last take")
        maps = [self._token_map(self._outputs[layer]) for layer in self.layers]
        self.clear()
        return maps

    def clear(self) -> None:
        """Forget what the hooks kept."""
        self._outputs.clear()

    def close(self) -> None:
        """Remove the hooks and forget what they kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def _token_map(self, output) -> TokenMap:
        x = single_tensor(output, self._name)
        if x.dim() == 4:
            if is_channels_last(x, self._channels_last):
                return x.flatten(1, 2), (x.shape[1], x.shape[2])
            return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])
        num_prefix, side = split_tokens(x.shape[1], self._num_prefix_tokens, self._name)
        return x[:, num_prefix:], (side, side)


def single_tensor(output, name: str) -> Tensor:
    """The one tensor of a block's output; MViT's blocks, for one, return (tokens, size)."""
    tensors = [output] if isinstance(output, Tensor) else [x for x in output if isinstance(x, Tensor)]
    if len(tensors) != 1 or tensors[0].dim() not in (3, 4):
        raise ValueError(f"{name}: a block must return one map [B, N, C] or [B, C, h, w] to be tapped")
    return tensors[0]


def is_channels_last(x: Tensor, model_says_so: bool) -> bool:
    """Whether a 4-D map is [B, h, w, C], for square maps; the model decides where h = w = C."""
    looks_last, looks_first = x.shape[1] == x.shape[2], x.shape[2] == x.shape[3]
    return model_says_so if looks_last == looks_first else looks_last


def split_tokens(num_tokens: int, num_prefix: int, name: str) -> tuple[int, int]:
    """(prefix tokens, side of the square map); blocks before the class token joins have none (ConViT, PVT)."""
    for prefix in (num_prefix, 0):
        side = math.isqrt(max(num_tokens - prefix, 0))
        if side > 0 and side * side == num_tokens - prefix:
            return prefix, side
    raise ValueError(
        f"{name}: {num_tokens} tokens are no square map with {num_prefix} prefix tokens or none; use square images"
    )


def architecture(model: nn.Module) -> str:
    """timm's name of the model, or its class name."""
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__


def num_prefix_tokens(model: nn.Module) -> int:
    """Tokens in front of the map: what the model states, else one where it has a class token."""
    for name in ("num_prefix_tokens", "num_tokens"):
        if isinstance(getattr(model, name, None), int):
            return getattr(model, name)
    return int(getattr(model, "cls_token", None) is not None)


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Blocks in forward order: the members of the containers named `blocks`, else of the stages in feature_info."""
    if type(model).__name__ in REORDERED:
        raise ValueError(f"{architecture(model)}: its blocks reorder the tokens, so their outputs are no maps")
    containers = block_containers(model) or stage_modules(model)
    blocks = [block for container in containers for block in leaf_blocks(container)]
    if not blocks:
        raise ValueError(
            f"{architecture(model)}: no blocks found to tap (looked for containers named 'blocks' and for the "
            "stages of feature_info)"
        )
    return blocks


def block_containers(model: nn.Module) -> list[nn.Module]:
    """Containers named `blocks` nearest to the root, in definition order; deeper ones are parts of blocks."""
    found = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "blocks" and isinstance(module, (nn.Sequential, nn.ModuleList))
    ]
    nearest = min((depth for depth, _ in found), default=0)
    return [module for depth, module in found if depth == nearest]


def stage_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that feature_info names, without plain layers such as a stem's activation."""
    modules = dict(model.named_modules())
    stages = [modules.get(info["module"]) for info in getattr(model, "feature_info", ())]
    return [stage for stage in stages if stage is not None and any(True for _ in stage.children())]


def leaf_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a list of blocks, nested lists unrolled; a block itself otherwise."""
    if not is_container(module):
        yield module
        return
    for child in module.children():
        yield from leaf_blocks(child)


def is_container(module: nn.Module) -> bool:
    """A list of blocks, rather than a block: a Sequential with a plain layer among its members is a block."""
    if isinstance(module, nn.ModuleList):
        return True
    return type(module) is nn.Sequential and all(any(True for _ in m.children()) for m in module)


def count_blocks(model: nn.Module) -> int:
    """Number of blocks over all stages."""
    return len(find_blocks(model))


def default_layers(model: nn.Module) -> tuple[int, int, int]:
    """The paper's taps where it has the model, otherwise first, middle and last block."""
    num_blocks = count_blocks(model)
    return PAPER_LAYERS.get((architecture(model), num_blocks), (0, num_blocks // 2, num_blocks - 1))


def resolve_layer(layer: int, num_blocks: int) -> int:
    if not -num_blocks <= layer < num_blocks:
        raise ValueError(f"block index must lie in [{-num_blocks}, {num_blocks - 1}], got {layer}")
    return layer % num_blocks


def tap_shapes(model: nn.Module, layers: Sequence[int], image_size: int) -> list[tuple[int, tuple[int, int]]]:
    """(C, (h, w)) of each tapped map at a square input, from one forward of a zero image."""
    taps = FeatureTaps(model, layers)
    try:
        run_zero_image(model, image_size)
        return [(tokens.shape[-1], grid) for tokens, grid in taps.take()]
    finally:
        taps.close()


@torch.no_grad()
def run_zero_image(model: nn.Module, image_size: int, forward=None):
    """One evaluation-mode forward of zeros; modes, statistics and random state stay as they were.

    Raises:
        ImageSizeError: the model cannot take images of that size.
    """
    with evaluation_mode(model):
        try:
            return (forward or model)(zero_image(model, image_size))
        except Exception as error:  # models check their input in many ways
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageSizeError(f"{architecture(model)}: cannot run at image size {image_size}: {reason}") from error


def zero_image(model: nn.Module, size: int) -> Tensor:
    """[1, C, size, size] in the model's type."""
    like = next(model.parameters())
    return torch.zeros(1, getattr(model, "in_chans", 3), size, size, device=like.device, dtype=like.dtype)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, in its own mode again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
