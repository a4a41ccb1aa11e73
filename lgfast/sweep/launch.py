"""Start and watch the worker processes of one machine, on its cores or several on each GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lgfast.runtime.cores import num_cores
from lgfast.runtime.interrupt import InterruptFlag


def worker_environments(workers: int, per_gpu: int) -> list[dict[str, str]]:
    """Return each worker's extra environment: its share of the cores, and its GPU if `per_gpu` workers share each.

    Raises:
        ValueError: workers per GPU without a GPU.
    """
    gpus = visible_gpus() if per_gpu else []
    if per_gpu and not gpus:
        raise ValueError("--workers-per-gpu: torch sees no CUDA device here; use --workers N")
    count = len(gpus) * per_gpu or workers
    threads = {"OMP_NUM_THREADS": str(max(1, num_cores() // count))}
    if not per_gpu:
        return [threads] * workers
    # First one worker for every GPU, then the second ones, so that no GPU waits.
    return [threads | {"CUDA_VISIBLE_DEVICES": gpu} for _ in range(per_gpu) for gpu in gpus]


def visible_gpus() -> list[str]:
    """Return the GPUs of this process as CUDA_VISIBLE_DEVICES names them: indices, or what a scheduler put there.

    CUDA reads the list up to the first name that it does not know. A process sees only the first MIG instance, but each
    worker can have its own.
    """
    if not torch.cuda.is_available():
        return []
    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return [str(index) for index in range(count)]
    names = [name.strip() for name in visible.split(",")]
    return names if names[0].startswith("MIG-") else names[:count]


def start_workers(command: list[str], environments: list[dict[str, str]], logs: Path) -> list[subprocess.Popen]:
    """Start a worker for each environment, with a log file each. Ctrl-C reaches workers only through the launcher."""
    logs.mkdir(parents=True, exist_ok=True)
    processes = []
    for number, extra in enumerate(environments):
        with (logs / f"worker-{number}.log").open("a") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "lgfast.train", *command],
                    env=os.environ | extra,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    return processes


def supervise(processes: list[subprocess.Popen], interrupt: InterruptFlag, on_poll: Callable[[], None]) -> list[int]:
    """Wait for the workers, pass an interrupt on, and return their exit codes."""
    was_told = False
    while any(process.poll() is None for process in processes):
        if interrupt.requested and not was_told:
            was_told = True
            for process in processes:
                process.send_signal(signal.SIGINT)
        on_poll()
        time.sleep(0.2)
    return [process.returncode for process in processes]
