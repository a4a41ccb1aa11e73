"""The CUDA kernels that benchmarks/smoke.py tries, and their names in LGFAST_DISABLE. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """A kernel, and what replaces it where it fails.

    Attributes:
        switch: its name in LGFAST_DISABLE; "" for a kernel that smoke tries but does not switch off.
        fallback: the kernel of the table that runs in its place when `switch` is switched off.
        whole: the name to switch off in place of `switch` where the fallback fails too.
        disabled: value of LGFAST_DISABLE in its own process, without which it would not run.
    """

    switch: str = ""
    fallback: str = ""
    whole: str = ""
    disabled: str = ""


# Simple kernels come first, and a fallback before the kernel that it replaces.
KERNELS = {
    "feature_mse_two_launches": Kernel(disabled="feature_mse_last_block"),
    "feature_mse": Kernel("feature_mse_last_block", fallback="feature_mse_two_launches", whole="feature_mse"),
    "flat_adamw": Kernel("flat_adamw"),
    "augment_plan": Kernel("augment_plan"),
    "augment": Kernel("augment"),
    "augment_in_parts": Kernel(),
    "bias_gelu_fwd": Kernel("bias_gelu_fwd"),
    "bias_gelu_bwd": Kernel("bias_gelu_bwd"),
    "add_layer_norm_fwd": Kernel("add_layer_norm_fwd"),
    "add_layer_norm_bwd": Kernel("add_layer_norm_bwd"),
    "short_attention_fwd": Kernel("short_attention_fwd", disabled="short_attention_fwd_wgmma"),
    "short_attention_fwd_wgmma": Kernel(
        "short_attention_fwd_wgmma", fallback="short_attention_fwd", whole="short_attention_fwd"
    ),
    "short_attention_bwd_streamed": Kernel(disabled="short_attention_bwd_resident,short_attention_bwd_wgmma"),
    "short_attention_bwd_resident": Kernel(
        "short_attention_bwd_resident",
        fallback="short_attention_bwd_streamed",
        whole="short_attention_bwd",
        disabled="short_attention_bwd_wgmma",
    ),
    "short_attention_bwd_wgmma": Kernel(
        "short_attention_bwd_wgmma", fallback="short_attention_bwd_resident", whole="short_attention_bwd"
    ),
}


def examine(name: str, shape: str, device: str) -> dict[str, object]:
    """Run a kernel on its small or target shape; see checks."""
    from benchmarks.kernels import checks

    return checks.examine(name, shape, device)


def prepare() -> None:
    """Import modules that take long and touch no device, before the clock of a kernel starts."""
    from benchmarks.kernels import checks  # noqa: F401
