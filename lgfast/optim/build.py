"""Build parameter groups and optimizer of a recipe, and set learning rates."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lgfast.config import OptimConfig
from lgfast.optim.device_numbers import DeviceNumbers, DeviceOptimizer
from lgfast.optim.flat_adamw import FlatAdamW
from lgfast.optim.muon import Muon
from lgfast.runtime.suggestions import did_you_mean, nearest

# Names of what belongs to a block of a transformer; ConViT's pos_proj [heads, 3] maps positions, not features.
IN_BLOCK = re.compile(r"(^|\.)blocks\.\d+\.(?!.*pos_proj)")
NO_DECAY_NAMES = ("cls_token", "pos_embed", "distill_token", "dist_token")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, other 1-D tensors, class tokens and position embeddings."""
    return parameter.ndim > 1 and not name.endswith(".bias") and not any(part in name for part in NO_DECAY_NAMES)


def param_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, scales: Mapping[str, float] | None = None
) -> list[dict]:
    """Make two groups, with and without weight decay, for each factor of the learning rate; leave frozen parameters
    out.

    Args:
        scales: factors by name, which a group holds as `lr_scale`; 1 for names that are not in it.
    """
    groups: dict[float, tuple[list[nn.Parameter], list[nn.Parameter]]] = {1.0: ([], [])}
    for name, parameter in named:
        if parameter.requires_grad:
            decay, no_decay = groups.setdefault((scales or {}).get(name, 1.0), ([], []))
            (decay if decays(name, parameter) else no_decay).append(parameter)
    return [
        {"params": parameters, "weight_decay": rate} | ({"lr_scale": scale} if scale != 1 else {})
        for scale, parts in groups.items()
        for parameters, rate in zip(parts, (weight_decay, 0.0), strict=True)
        if parameters or scale == 1
    ]


class DeviceSGD(DeviceOptimizer, torch.optim.SGD):
    """torch's fused SGD with Nesterov momentum, fit for a captured step: it reads its rates on the device, where
    `send_hyperparameters` brings those of the groups, and buffers exist from the start (zeros give the first step of
    torch's, and survive one that loss scaling skips)."""

    def __init__(self, groups: list[dict], *, lr: float, momentum: float) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
        self._lay_out()
        if momentum > 0:
            self.state |= {p: {"momentum_buffer": torch.zeros_like(p)} for p in self.parameters}

    def _lay_out(self) -> None:
        self.parameters = [p for group in self.param_groups for p in group["params"]]
        self.numbers = DeviceNumbers(self._rows(), self.parameters[0].device, torch.float32)
        self.rates = self.numbers.table[:, 0].unbind()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `load_state_dict`, a copy or a pickle brings."""
        super().__setstate__(state)
        for group in self.param_groups:
            group["lr"] = float(group["lr"])
        if "numbers" not in self.__dict__:
            self._lay_out()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self.send_hyperparameters()
        numbers = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, self.rates, strict=True):
            group["lr"] = rate
        try:
            return torch.optim.SGD.step(self, closure)
        finally:
            for group, number in zip(self.param_groups, numbers, strict=True):
                group["lr"] = number

    def _rows(self) -> list[tuple[float, ...]]:
        return [(float(group["lr"]),) for group in self.param_groups]


def clips_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer clips gradients within its update, as `build_optimizer` asked it to."""
    return isinstance(optimizer, FlatAdamW)


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]],
    config: OptimConfig,
    skip_nonfinite: bool = False,
    scales: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Build an optimizer. A CUDA graph can hold `adamw`, `muon` and `sgd`; timm's factory builds every other name.

    Args:
        skip_nonfinite: gradients may overflow (fp16-amp), which undoes the step.
        scales: factors of the learning rate by parameter's name; 1 for the others.
    Raises:
        ValueError: the name is unknown, or the optimizer cannot work here; the message says what it lacks.
    """
    named = list(named)
    groups = param_groups(named, config.weight_decay, scales)
    if config.name == "adamw":
        return FlatAdamW(
            groups,
            lr=config.lr,
            weight_decay=config.weight_decay,
            max_norm=config.clip_norm,
            skip_nonfinite=skip_nonfinite,
        )
    if config.name == "muon":
        if scales:
            raise ValueError(
                "optim.layer_decay: muon gives all blocks one rate; use optim.name=adamw, or layer_decay=1"
            )
        return build_muon(named, config)
    if config.name == "sgd":
        return DeviceSGD(groups, lr=config.lr, momentum=config.momentum)
    from timm.optim import create_optimizer_v2

    check_apex(config.name)
    check_name(config.name)
    try:
        optimizer = create_optimizer_v2(
            groups, config.name, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
    except Exception as error:  # it may lack a package or a device
        raise ValueError(f"optim.name: {config.name}: {' '.join(str(error).split())}") from error
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(f"optim.name: {config.name} needs gradients of gradients, which no step here keeps; use adamw")
    if all(parameter.device.type == "cpu" for _, parameter in named):
        run_uncompiled(optimizer)
    return optimizer


def run_uncompiled(optimizer: torch.optim.Optimizer) -> None:
    """Replace the functions that an optimizer compiles by plain ones: Kron's take minutes and a compiler on a CPU."""
    for name, value in list(vars(optimizer).items()):
        if plain := getattr(value, "_torchdynamo_orig_callable", None):
            setattr(optimizer, name, plain)


def build_muon(named: Sequence[tuple[str, nn.Parameter]], config: OptimConfig) -> Muon:
    """Build Muon for the matrices within blocks, AdamW for embeddings, heads, projections, norms and biases."""
    matrices = [p for name, p in named if p.requires_grad and p.ndim == 2 and IN_BLOCK.search(name)]
    chosen = set(map(id, matrices))
    rest = param_groups([(name, p) for name, p in named if id(p) not in chosen], config.weight_decay)
    try:
        return Muon(matrices, rest, lr=config.lr, weight_decay=config.weight_decay, momentum=config.muon_momentum)
    except ValueError as error:
        raise ValueError(f"optim.name=muon: {error}") from error


def check_name(name: str) -> None:
    """Raise a ValueError unless timm's factory knows the name; it also takes `lookahead_` before each."""
    from timm.optim import list_optimizers

    known = list_optimizers()
    if name.lower().removeprefix("lookahead_") not in known:
        hint = did_you_mean(nearest(name, known), "timm.optim.list_optimizers() lists the names")
        raise ValueError(f"optim.name: unknown optimizer {name!r}; {hint}")


def check_apex(name: str) -> None:
    """Raise a ValueError where NVIDIA apex, which timm's fused* optimizers need, is missing."""
    if not name.startswith("fused") or importlib.util.find_spec("amp_C") is not None:
        return
    found = "not installed"
    if importlib.util.find_spec("apex") is not None:
        found = "not what is installed as apex here (PyPI's apex is another project, or apex was built without CUDA)"
    raise ValueError(
        f"optim.name: {name} needs NVIDIA apex, which is {found}. Build it from source: git clone "
        "https://github.com/NVIDIA/apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation ./apex, "
        f"not `pip install apex`; or choose optim.name={name.removeprefix('fused')}"
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's rate, times its `lr_scale`; a tensor is written in place, since a captured step may read it."""
    for group in optimizer.param_groups:
        rate = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
