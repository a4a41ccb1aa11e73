"""The CUDA kernels that benchmarks/smoke.py tries, and what LGFAST_DISABLE calls them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """A kernel, and what replaces it where it fails.

    Attributes:
        switch: its name in LGFAST_DISABLE; "": it is only looked at.
        fallback: the kernel of the table that steps in where `switch` is off.
        whole: the switch in place of `switch` where the fallback fails too.
        disabled: LGFAST_DISABLE of its own process, to reach it.
    """

    switch: str = ""
    fallback: str = ""
    whole: str = ""
    disabled: str = ""


# Simple ones first; a fallback before what it steps in for.
KERNELS = {
    "feature_mse": Kernel("feature_mse"),
    "flat_adamw": Kernel("flat_adamw"),
    "augment_plan": Kernel("augment_plan"),
    "augment": Kernel("augment"),
    "bias_gelu_fwd": Kernel("bias_gelu_fwd"),
    "bias_gelu_bwd": Kernel("bias_gelu_bwd"),
    "add_layer_norm_fwd": Kernel("add_layer_norm_fwd"),
    "add_layer_norm_bwd": Kernel("add_layer_norm_bwd"),
    "short_attention_fwd": Kernel("short_attention_fwd"),
    "short_attention_bwd_streamed": Kernel(disabled="short_attention_bwd_resident"),
    "short_attention_bwd_resident": Kernel(
        "short_attention_bwd_resident", fallback="short_attention_bwd_streamed", whole="short_attention_bwd"
    ),
}


def examine(name: str, shape: str, device: str) -> dict[str, object]:
    """Runs a kernel on its small or target shape; see checks."""
    from benchmarks.kernels import checks

    return checks.examine(name, shape, device)


def prepare() -> None:
    """Import what takes long and touches no device, before the clock of a kernel starts."""
    from benchmarks.kernels import checks  # noqa: F401
