"""Options, timing and memory measurement of the benchmarks. A bench function yields rows (dicts); see row_file.py."""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch._dynamo

from benchmarks import cuda_calls, row_file
from lgfast import _extension

torch._dynamo.config.recompile_limit = 256  # a compiled peer is compiled for each shape, as its users would do
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call (median, 20th and 80th percentile) and its peak memory, or why there are none."""

    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    peak_mib: float | None = None  # beyond what was allocated before the call; None on the CPU
    error: str = ""

    def per_s(self, count: float) -> float | None:
        """Return how many things are made per second, where one call makes `count` of them."""
        return None if self.median_ms is None else count / self.median_ms * 1e3

    def per_call(self, num_calls: int) -> Timing:
        """Return the timing of one call, where `num_calls` calls were timed as one."""
        if self.error:
            return self
        return Timing(*(t / num_calls for t in (self.median_ms, self.p20_ms, self.p80_ms)), self.peak_mib)


def parser(doc: str, rounds: int) -> argparse.ArgumentParser:
    """Make a parser with the options of every benchmark; its text is the first line of the script's docstring."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--rounds", type=count, default=rounds, help=f"times each call is timed; default {rounds}")
    options.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda where torch sees one"
    )
    options.add_argument(
        "--out", type=Path, default=row_file.RESULTS, help="folder of the CSV; default benchmarks/results"
    )
    options.add_argument("--ceilings", type=Path, help="CSV of benchmarks.ceilings; default: measured first")
    return options


def count(text: str) -> int:
    """Read an option's whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def counts(text: str) -> list[int]:
    """Read an option's comma-separated numbers above 0."""
    return [count(part) for part in text.split(",")]


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return the type of an option that lists some of the `known` names, separated by commas."""

    def names(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {name!r}; known: {', '.join(known)}")
        return found

    return names


def add_names(
    options: argparse.ArgumentParser, flag: str, known: Iterable[str], default: str | None = None, about: str = ""
) -> None:
    """Add an option that lists some of the `known` names.

    Args:
        flag: the option.
        default: comma-separated; None: all of them, or the default that `about` describes.
        about: what the help says of the default.
    """
    known = list(known)
    of = f"comma-separated, of {', '.join(known)}; "
    chosen = None if about and default is None else (default or ",".join(known))
    text = about or f"default: {'all' if chosen == ','.join(known) else chosen}"
    options.add_argument(flag, type=names_of(known), default=chosen, help=of + text)


def chosen_device(options: argparse.Namespace) -> torch.device:
    """Return the device of a command line. Refuse a GPU that cannot run lgfast's kernels: nothing is to be measured."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device: {device} was asked for, but torch sees no CUDA device; use --device cpu")
    if device.type == "cuda" and not _extension.has_cuda_kernels():
        raise SystemExit(
            "lgfast._cuda is not built, so its rows would be those of the reference; build it "
            "(python setup.py build_ext --inplace) or measure with --device cpu"
        )
    if device.type == "cuda":
        unserved = _extension.unserved_gpu_reason(torch.cuda.get_device_capability(device))
        if unserved is not None:
            raise SystemExit(f"--device: {unserved}")
    return device


def time_interleaved(
    calls: dict[str, Callable[[], object]],
    device: torch.device,
    rounds: int = 50,
    warmup: int = 5,
    fragile: Collection[str] = (),
    untimed: int = 0,
    queued: bool = False,
) -> dict[str, Timing]:
    """Time every call once a round, so that a busy moment of the machine slows all of them alike.

    A call that runs out of memory is left out from then on; its Timing holds the error.

    Args:
        calls: by name.
        rounds: how often each call is timed.
        warmup: how often each call is made before.
        fragile: calls, such as compiled peers, for which any failure becomes the Timing's error.
        untimed: calls before the timed one of every turn, for processes whose caches others have filled.
        queued: on a GPU, time what the GPU does and not what the host needs to ask for it.
    """
    once = partial(cuda_calls.milliseconds, queued=queued) if device.type == "cuda" else _cpu_ms
    samples, peaks, errors = {name: [] for name in calls}, {}, {}

    def attempt(name: str, measure: Callable[[], float | None]) -> float | None:
        try:
            return None if name in errors else measure()
        except OUT_OF_MEMORY as error:
            errors[name] = out_of_memory(error)
        except Exception as error:
            if name not in fragile:
                raise
            errors[name] = failure(error)

    for name, call in calls.items():
        for _ in range(warmup):
            attempt(name, call)
        peaks[name] = attempt(name, lambda call=call: peak_mib(getattr(call, "eager", call), device))
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(untimed):
                attempt(name, call)
            samples[name].append(attempt(name, lambda call=call: once(call)))
    return {
        name: Timing(error=errors[name]) if name in errors else _timing(values, peaks[name])
        for name, values in samples.items()
    }


def out_of_memory(error: BaseException) -> str:
    """Return what a row shows in place of times. Free what the failed call held, so that the next row has memory."""
    traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return "out of memory"


def failure(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def ready(make: Callable[[], Callable[[], object]], fragile: bool = False) -> Callable[[], object]:
    """Return the call that `make` makes. If making it runs out of memory, return a call that raises that error.

    Args:
        fragile: return such a call for any other error too.
    """
    try:
        return make()
    except OUT_OF_MEMORY as error:
        out_of_memory(error)
        kept = MemoryError(str(error))
    except Exception as error:
        if not fragile:
            raise
        kept = error.with_traceback(None)

    def call():
        raise kept

    return call


def agreeing(providers: Iterable[str], check: Callable[[str], None], about: str) -> list[str]:
    """Return the providers that pass a check. Print why a peer does not pass, or cannot do `about` at all."""
    found = []
    for provider in providers:
        try:
            check(provider)
            found.append(provider)
        except Exception as error:  # a peer may fail in any way
            if provider == "lgfast":
                raise
            print(f"{about} {provider}: not available: {failure(error)}")
    return found


def survive(rows: Iterable[dict], **about: str) -> Iterator[dict]:
    """Yield the rows of one shape. If they run out of memory, for example in set-up, yield a row that says so.

    Args:
        about: columns of that row.
    """
    try:
        yield from rows
    except OUT_OF_MEMORY as error:
        yield {"op": "", "provider": "", "mode": "", "dtype": "", "shape": "", **about, "error": out_of_memory(error)}


def peak_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """Measure the device memory that a call needs beyond what is allocated. On the CPU, return None without a call."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _timing(samples: list[float], peak: float | None) -> Timing:
    if len(samples) == 1:
        samples = samples * 2
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return Timing(statistics.median(samples), fifths[0], fifths[-1], peak)


def _cpu_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
