"""Choose how many threads PyTorch computes with on the CPU, and how they wait for one another.

OpenMP's threads wait by spinning. Where other work wants their cores, a step takes several times as long. A command
line therefore looks at the machine before it loads torch. On an idle machine it leaves OpenMP's own choice, which is
the fastest. Beside other work it takes only the free cores, and lets threads sleep while they wait.

Measured with a ViT of 0.7 M parameters, 32 images of 16x16 on two cores, milliseconds a step (median of 25, two runs):

    threads, waiting          idle      beside one busy process
    2, OpenMP's own           51, 52    123, 244
    2, asleep                 72, 79    120, 100
    1                         86, 87     84, 80
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from lgfast.runtime.cores import free_cores, num_cores

CHOICES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # whoever sets one of them has chosen
_is_users_choice = any(name in os.environ for name in CHOICES)
_chosen: list[str] = []  # says what `spare_other_work` did


def spare_other_work() -> None:
    """Choose threads and waiting by the machine's load. Works before torch is loaded; children inherit it."""
    if _is_users_choice or _chosen:
        return
    cores, free = num_cores(), free_cores()
    if free == cores:
        return
    os.environ |= {"OMP_NUM_THREADS": str(free), "OMP_WAIT_POLICY": "passive"}
    _chosen.append(
        f"other work keeps {cores - free} of {cores} cores busy: computing with {free} thread"
        f"{'s' if free > 1 else ''} (OMP_NUM_THREADS={cores} takes all)"
    )


def choice() -> str:
    """Say what was chosen because of other work, or nothing."""
    return "".join(_chosen)


def compute_as_before(run_dir: str) -> None:
    """Take the number of threads that a run began with, if there are enough cores. The last bits of sums depend on
    it."""
    import torch

    try:
        threads = json.loads((Path(run_dir) / "environment.json").read_text())["cpu_threads"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not _is_users_choice and isinstance(threads, int) and 1 <= threads <= num_cores():
        torch.set_num_threads(threads)
