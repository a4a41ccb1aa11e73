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
    "first": Kernel("first"),
    "hanging": Kernel("hanging"),
    **{name: Kernel(name) for name in PLANTED},
    "missing": Kernel("missing"),
    "raising": Kernel("raising"),
    "ending": Kernel("ending"),
    "sound_fallback": Kernel(disabled="some_variant"),
    "some_variant": Kernel("some_variant", fallback="sound_fallback", whole="some_kernel"),
    "wrong_fallback": Kernel(disabled="other_variant"),
    "other_variant": Kernel("other_variant", fallback="wrong_fallback", whole="other_kernel"),
    "last": Kernel("last"),
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
        raise NotImplementedError("Could not run 'lgfast::missing' with arguments from the 'CUDA' backend.\nmore")
    if name == "ending":
        os.kill(os.getpid(), 11)
    if name in PLANTED:
        return GOOD | PLANTED[name]
    raise RuntimeError("an illegal memory access was encountered")
