"""Count the processor cores of this process. Imports only the standard library."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # of control groups, version 2: microseconds of quota and of period
SCHEDSTAT = Path("/proc/thread-self/schedstat")  # nanoseconds that a thread ran, and that it waited to run
LOADAVG = Path("/proc/loadavg")  # its fourth field begins with the number of tasks that run now
SAMPLES, SECONDS_BETWEEN_SAMPLES = 5, 0.01


def num_cores() -> int:
    """Count the cores that this process may use: those it is bound to, within its container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, core_quota())))


def core_quota() -> float:
    """Return the number of cores' time that the container grants; infinity where it sets no limit."""
    try:
        quota, period = CPU_MAX.read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def busy_cores() -> float:
    """Count the cores that other tasks keep busy now; 0 where the system does not tell."""
    seen = []
    for _ in range(SAMPLES):
        time.sleep(SECONDS_BETWEEN_SAMPLES)
        try:
            seen.append(int(LOADAVG.read_text().split()[3].partition("/")[0]) - 1)  # one of the tasks is this process
        except (OSError, ValueError, IndexError):
            return 0.0
    return float(sorted(seen)[SAMPLES // 2])


def free_cores() -> int:
    """Count the free cores that this process may use, at least 1. Other work is assumed to spread over all cores."""
    share = min(1.0, busy_cores() / (os.cpu_count() or 1))
    return max(1, round(num_cores() * (1 - share)))


def waited_for_core_s() -> float:
    """Return the seconds for which other work kept this thread from running; 0 where the system does not tell."""
    try:
        return int(SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
