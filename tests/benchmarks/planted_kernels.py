"""Kernels that are wrong in every way that benchmarks/smoke.py tells apart; they import nothing, and start at once."""

import math
import os
import time

from benchmarks.kernels.table import Kernel

GOOD = {"shape": "", "error_share": 0.5, "repeats": True, "replays": True, "median_ms": 0.02}
PLANTED = {
    "inexact": {"error_share": 1.5},
    "not_a_number": {"error_share": math.nan},
    "unsteady": {"repeats": False},
    "frozen": {"replays": False},
}
KERNELS = {
    "first": Kernel("feature_mse"),
    "hanging": Kernel("augment"),
    "inexact": Kernel("bias_gelu_fwd"),
    "not_a_number": Kernel("bias_gelu_bwd"),
    "unsteady": Kernel("add_layer_norm_fwd"),
    "frozen": Kernel("add_layer_norm_bwd"),
    "missing": Kernel("augment_plan"),
    "raising": Kernel("flat_adamw"),
    "ending": Kernel("short_attention_fwd"),
    "sound_fallback": Kernel(disabled="short_attention_bwd_resident"),
    "variant": Kernel("short_attention_bwd_resident", fallback="sound_fallback", whole="short_attention_bwd"),
    "wrong_fallback": Kernel(disabled="bias_gelu"),
    "other_variant": Kernel("add_layer_norm", fallback="wrong_fallback", whole="short_attention"),
    "last": Kernel("feature_mse"),
}


def prepare() -> None:
    pass


def examine(name: str, shape: str, device: str) -> dict[str, object]:
    assert os.environ.get("LGFAST_DISABLE", "") == KERNELS[name].disabled
    if shape == "small" or name in ("first", "last", "sound_fallback"):
        return GOOD
    if name == "hanging":
        time.sleep(600)
    if name == "missing":
        message = "Could not run 'lgfast::missing' with arguments from the 'CUDA' backend.\nmore"
        raise NotImplementedError(message)  # planted: as torch raises it of an operation without a kernel
    if name == "ending":
        os.kill(os.getpid(), 11)
    if name in PLANTED:
        return GOOD | PLANTED[name]
    raise RuntimeError("an illegal memory access was encountered")
