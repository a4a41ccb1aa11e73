"""Tell which operations a guided training step on a CPU spends its processor time on, for several providers.

    python -m benchmarks.processor_profile [--shape digits] [--batch 32] [--providers amp,lgfast] [--precision fp32]

One thread computes, and the clock counts its processor time alone, so that a busy machine changes little. Rows
`operation`: calls in a step, and the median over the rounds of the time in them. The row `rest` is what the step takes
beyond its operations: Python, dispatch and autograd. The row `step` is of steps without the clock, which costs a
microsecond or two an operation; so `rest` is too low, and below zero where operations are many. share: of the row
`step`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import harness, row_file
from benchmarks.step_calls import PROVIDERS, make_alone
from benchmarks.train_setup import SHAPES


class ProcessorClock(TorchDispatchMode):
    """Sums this thread's processor time in microseconds, and calls, by operation such as aten::addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.us, self.calls = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        started = time.thread_time()
        result = func(*args, **kwargs or {})
        name = func.overloadpacket._qualified_op_name
        self.us[name] += (time.thread_time() - started) * 1e6
        self.calls[name] += 1
        return result


def step_us(call: Callable[[], object]) -> float:
    started = time.thread_time()
    call()
    return (time.thread_time() - started) * 1e6


def operations(call: Callable[[], object], rounds: int, top: int) -> list[dict]:
    """Return the rows of one step: its longest operations, the others together, the rest, and the whole."""
    call()
    whole, clocks = [], []
    for _ in range(rounds):
        whole.append(step_us(call))
        with ProcessorClock() as clock:
            call()
        clocks.append(clock)
    us = {name: median(clock.us[name] for clock in clocks) for name in clocks[-1].us}
    calls, ranked, step = clocks[-1].calls, sorted(us, key=us.__getitem__, reverse=True), median(whole)
    rows = [{"mode": "operation", "name": name, "launches": calls[name], "us": us[name]} for name in ranked[:top]]
    if others := ranked[top:]:
        launches = sum(calls[name] for name in others)
        together = sum(us[name] for name in others)
        rows.append({"mode": "operation", "name": f"{len(others)} others", "launches": launches, "us": together})
    rows.append({"mode": "rest", "name": "Python, dispatch, autograd", "us": step - sum(us.values())})
    rows.append({"mode": "step", "name": "step", "launches": calls.total(), "us": step})
    return [row | {"share": row["us"] / step} for row in rows]


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=10)
    parser.add_argument("--shape", default="digits", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=32)
    harness.add_names(parser, "--providers", PROVIDERS, "amp,lgfast")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--top", type=int, default=16, help="operations with a row of their own")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    device, rows = torch.device("cpu"), []
    about = {"op": "train_step", "dtype": options.precision, "shape": f"{options.shape} B={options.batch}"}
    for provider in options.providers:  # lgfast's last: its allocator setting stays
        call = make_alone(provider, (options.shape, options.batch, True, device), options.precision)
        for row in operations(call, options.rounds, options.top):
            rows.append(about | {"provider": provider} | row)
            print(
                f"{provider:<8} {row.get('launches', ''):>6} x {row['us']:10.1f} us {row['share']:6.1%}  {row['name']}"
            )
    print(row_file.write_rows("processor_profile", rows, device, options.out))


if __name__ == "__main__":
    main()
