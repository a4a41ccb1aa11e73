"""Examine one kernel on one shape: compare it with the truth, run it twice, capture it, time it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.cuda_calls import captured
from benchmarks.kernels.trials import TRIALS, Trial, Truth

ROUNDS = {"cuda": 50, "cpu": 3}


def measured_times(device: torch.device, replay: Callable[[], None]) -> dict[str, float]:
    """Measure the milliseconds of one call."""
    times = harness.time_interleaved({"": replay}, device, ROUNDS[device.type], warmup=2, queued=True)[""]
    return {"median_ms": times.median_ms, "p20_ms": times.p20_ms, "p80_ms": times.p80_ms}


def kept(trial: Trial) -> list[Tensor]:
    trial.reset()
    return [result.clone() for result in trial.call()]


def poison(results: list[Tensor]) -> None:
    """Leave NaN in freed memory, which the results of the next call are likely to get."""
    blocks = [torch.empty(result.nbytes, dtype=torch.uint8, device=result.device).fill_(0xFF) for result in results]
    del blocks


def error_share(results: list[Tensor], truth: list[Truth]) -> float:
    """Return the largest error as a share of the error allowed. Up to 1 is right; NaN and infinity are wrong."""
    shares = [0.0]
    for result, (exact, bound) in zip(results, truth, strict=True):
        error = (result.double() - exact).abs().max().item() if exact.numel() else 0.0
        shares.append(0.0 if error == 0 else error / bound if bound else math.inf)
    return next((share for share in shares if math.isnan(share)), max(shares))


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(map(torch.equal, left, right))


def examined(trial: Trial, device: torch.device) -> dict[str, object]:
    """Examine one kernel on one shape.

    Returns:
        A dict with error_share: the largest error as a share of the error allowed; repeats: whether two runs agree bit
        for bit; replays: whether a captured run, on inputs that were written after the capture, agrees with an eager
        one; and median_ms, p20_ms, p80_ms.
    """
    poison(kept(trial))
    results = kept(trial)
    found: dict[str, object] = {"error_share": error_share(results, trial.truth())}
    found["repeats"] = equal(results, kept(trial))
    outputs: list[Tensor] = []

    def run() -> None:
        outputs[:] = trial.call()

    replay = captured(lambda: run) if device.type == "cuda" else run
    trial.renew()
    trial.reset()
    replay()
    replayed = [output.clone() for output in outputs]
    found["replays"] = equal(replayed, kept(trial))
    return found | measured_times(device, replay)


def make_trial(name: str, shape: str, device: torch.device) -> tuple[Trial, str]:
    """Make a kernel's trial, and describe its shape. On a CPU a shape is cut to one image, or to a few parameters.

    Args:
        shape: small or target.
    """
    make, small, target = TRIALS[name]
    torch.manual_seed(0)
    numbers = small if shape == "small" else target
    if device.type == "cpu":
        numbers = numbers | ({"batch": 1} if "batch" in numbers else {"sizes": numbers["sizes"][:8]})
    words = " ".join(f"{key}={value}" for key, value in numbers.items() if key != "sizes")
    return make(device, **numbers), words


def examine(name: str, shape: str, device: str) -> dict[str, object]:
    """Make a kernel's trial and return `examined`, with a description of the shape."""
    place = torch.device(device)
    trial, words = make_trial(name, shape, place)
    return {"shape": words} | examined(trial, place)
