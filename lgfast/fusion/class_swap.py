"""Gives modules of a model another class, in place and reversibly: weights, state-dict keys and hooks stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class FuseReport:
    """What a swap did.

    Attributes:
        fused: names of the modules that now use the fused operations.
        refused: (name, class, reason) of the candidates left as they are.
        claim: what is said of the fused ones.
        limits: on which inputs they do; elsewhere they run as before. Empty: on all.
    """

    fused: tuple[str, ...]
    refused: tuple[tuple[str, str, str], ...]
    claim: str
    limits: str = ""

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} {self.claim}", *([self.limits] if self.fused and self.limits else [])]
        reasons: dict[tuple[str, str], list[str]] = {}
        for name, class_name, reason in self.refused:
            reasons.setdefault((class_name, reason), []).append(name)
        for (class_name, reason), names in reasons.items():
            examples = (names[0] or "the model itself") + (", ..." if len(names) > 1 else "")
            lines.append(f"left as they are: {len(names)} {class_name} ({examples}): {reason}")
        return "\n".join(lines)


class ClassSwap:
    """Classes and their fused subclasses.

    Args:
        claim: what a report says of the fused modules.
        is_candidate: whether a module without a registered class deserves a line in the report.
        refusal: why a candidate must stay as it is, or None.
        limits: on which inputs the fused modules of a model use the operations, a line of the report.
    """

    def __init__(
        self,
        claim: str,
        is_candidate: Callable[[nn.Module], bool],
        refusal: Callable[[nn.Module], str | None],
        limits: Callable[[nn.Module], str] = lambda model: "",
    ) -> None:
        self.claim, self.is_candidate, self.refusal, self.limits = claim, is_candidate, refusal, limits
        self.fused_classes: dict[type, type] = {}
        self.conditions: dict[type, Callable[[nn.Module], bool]] = {}

    def register(
        self, plain: type[nn.Module], only: Callable[[nn.Module], bool] = lambda module: True
    ) -> Callable[[type], type]:
        """Class decorator: the decorated subclass of `plain` is its fused form.

        Args:
            only: whether a module of that class is to be looked at; the others stay as they are, without a line.
        """

        def register(fused: type) -> type:
            self.fused_classes[plain], self.conditions[plain] = fused, only
            fused.__prepare_scriptable__ = _refuse_script  # type: ignore[attr-defined]  # torch.jit.script asks for it
            return fused

        return register

    def knows(self, module: nn.Module) -> bool:
        """Whether the module has a fused form."""
        return type(module) in self.fused_classes and self.conditions[type(module)](module)

    def swap(self, model: nn.Module) -> FuseReport:
        """Swap every candidate that is not refused; doing so twice changes nothing."""
        _check_module(model)
        fused, refused = [], []
        for name, module in model.named_modules():
            if type(module) in self.fused_classes.values():
                fused.append(name)
            elif self.knows(module) or self.is_candidate(module):
                reason = self.refusal(module)
                if reason is None:
                    module.__class__ = self.fused_classes[type(module)]
                    fused.append(name)
                else:
                    refused.append((name, type(module).__name__, reason))
        return FuseReport(tuple(fused), tuple(refused), self.claim, self.limits(model))

    def undo(self, model: nn.Module) -> None:
        """Give every module its plain class back."""
        _check_module(model)
        plain = {fused: plain for plain, fused in self.fused_classes.items()}
        for module in model.modules():
            module.__class__ = plain.get(type(module), type(module))


def _refuse_script(module: nn.Module) -> nn.Module:
    """Refuse torch.jit.script, which asks a module for this attribute before it compiles it."""
    raise RuntimeError(
        f"torch.jit.script cannot compile {type(module).__name__}; call lgfast.unfuse(model) and "
        "lgfast.unfuse_layers(model) first, or use torch.jit.trace, torch.export or torch.onnx.export"
    )


def _check_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}; create the model first")
