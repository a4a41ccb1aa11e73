"""Profile one guided training step: a trace, and a table of what takes its time.

    python -m benchmarks.profile_step [--shape deit_tiny_224] [--batch 128] [--top 40]

Rows `operation` are of an eager step: calls, own time on the device, and the bytes of the tensors that the operation
reads and writes, once each. Rows `kernel` (CUDA) are of the replayed graph: launches and time. Bytes are known for the
kernels of lgfast's own operations, which carry the operation's name. copy_share: bytes over time, as a share of a
device copy; it is above 1 where a cache helps. share: of the time of all rows. The trace opens in
https://ui.perfetto.dev.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import ceilings, harness, row_file
from benchmarks.train_setup import SHAPES, Setup
from lgfast.runtime.auto_precision import auto_precision
from lgfast.step import TrainStep
from lgfast.step.graph import WARMUP_STEPS


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, by name such as aten::addmm; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes, self.calls = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if not func.is_view:
            name = func.overloadpacket._qualified_op_name
            self.calls[name] += 1
            self.num_bytes[name] += total_bytes((args, kwargs)) + total_bytes((result, written(func, args, kwargs)))
        return result


def written(func, args: tuple, kwargs: dict | None) -> list:
    """Return the arguments that an operation changes in place."""
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
    changed = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    return [value for name, value in named.items() if name in changed]


def total_bytes(tree: object) -> int:
    """Sum the bytes of the distinct tensors in nested arguments."""
    tensors = {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())


def traced(step: TrainStep, batch, device: torch.device) -> profile:
    """Profile one step after some warm-up steps; the last warm-up step captures the graph, if there is one."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    for _ in range(WARMUP_STEPS + 1):
        step(batch)
    with profile(activities=activities) as found:
        step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return found


def operation_times(found: profile, device: torch.device) -> dict[str, tuple[int, float]]:
    """Return calls and own microseconds on the device, by operation."""
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = [e for e in found.key_averages() if e.device_type == DeviceType.CPU and "::" in e.key]
    return {event.key: (event.count, getattr(event, own)) for event in events}


def kernel_times(found: profile) -> dict[str, tuple[int, float]]:
    """Return launches and microseconds, by kernel."""
    events = [event for event in found.key_averages() if event.device_type == DeviceType.CUDA]
    return {event.key: (event.count, event.self_device_time_total) for event in events}


def kernel_bytes(kernel: str, traffic: Traffic) -> float | None:
    """Return the bytes of one launch if the kernel is named after an operation of lgfast, otherwise None.

    The packed form of an operation runs the same kernel as the plain form. feature_mse_kernel makes loss and gradient.
    """
    for name, calls in traffic.calls.items():
        space, _, bare = name.partition("::")
        names = {bare.replace("_qkvpacked", ""), bare.removesuffix("_fwd")}
        if space == "lgfast" and re.search(rf"\b({'|'.join(names)})_kernel\b", kernel):
            return traffic.num_bytes[name] / calls
    return None


def rows_of(
    kind: str, times: dict[str, tuple[int, float]], num_bytes: dict[str, float], limits: ceilings.Ceilings, top: int
) -> Iterator[dict]:
    """Yield the rows that take most time, and one for the rest.

    Args:
        kind: operation or kernel.
        times: name -> (calls, microseconds).
        num_bytes: name -> bytes of all calls together, where they are known.
        top: number of rows before the rest.
    """
    whole = sum(us for _, us in times.values()) or 1.0
    ranked = sorted(times.items(), key=lambda item: -item[1][1])
    for name, (count, us) in ranked[:top]:
        shares = limits.shares(harness.Timing(us / 1e3), num_bytes.get(name)) if us else {}
        row = {"name": name, "launches": count, "us": us, "share": us / whole, "num_bytes": num_bytes.get(name)}
        yield {"mode": kind, **row, **shares}
    if rest := ranked[top:]:
        us = sum(us for _, (_, us) in rest)
        launches = sum(count for _, (count, _) in rest)
        yield {"mode": kind, "name": f"{len(rest)} others", "launches": launches, "us": us, "share": us / whole}


def step_rows(setup: Setup, precision: str, limits: ceilings.Ceilings, top: int) -> tuple[list[dict], profile]:
    """Return the rows of one shape and the profile to export: of the graph, or of the eager step without one."""
    device, batch = setup.device, setup.batch
    eager = setup.train_step(precision, graph="off")
    found = traced(eager, batch, device)
    with Traffic() as traffic:
        eager(batch)
    rows = list(rows_of("operation", operation_times(found, device), traffic.num_bytes, limits, top))
    if device.type == "cuda":
        found = traced(setup.train_step(precision), batch, device)
        times = kernel_times(found)
        known = {name: kernel_bytes(name, traffic) for name in times}
        num_bytes = {name: known[name] * count for name, (count, _) in times.items() if known[name] is not None}
        rows += rows_of("kernel", times, num_bytes, limits, top)
    about = {"op": "train_step", "provider": "lgfast", "dtype": precision}
    return [about | row for row in rows], found


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=1)
    parser.add_argument("--shape", default="deit_tiny_224", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 where it is faster on the device")
    parser.add_argument("--top", type=int, default=40, help="rows of each kind")
    options = parser.parse_args(argv)
    device = harness.chosen_device(options)
    limits = ceilings.load(options.ceilings, device)
    precision = options.precision or auto_precision(device)
    rows, found = step_rows(Setup(options.shape, options.batch, True, device), precision, limits, options.top)
    for row in rows:
        row["shape"] = f"{options.shape} B={options.batch}"
        print(f"{row['mode']:<10} {row['launches']:5d} x {row['us']:10.1f} us {row['share']:6.1%}  {row['name'][:90]}")
    path = row_file.write_rows("profile", rows, device, options.out)
    trace = path.with_name(f"{path.stem}_trace.json.gz")
    found.export_chrome_trace(str(trace))
    print(path, trace, sep="\n")


if __name__ == "__main__":
    main()
