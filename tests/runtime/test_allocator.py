"""keep_freed_memory: what a step frees is not given back to the system."""

import os
import subprocess
import sys

import pytest

STEP = """
import torch
from lgfast.runtime.allocator import keep_freed_memory
def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
def step():
    blocks = [torch.ones(1 << 20) for _ in range(16)]  # 64 MiB in all, more than glibc keeps by itself
before = resident_mib()
for keep in {keeps}:
    told = keep_freed_memory() if keep else None
    step()
    print(resident_mib() - before, told)
"""


def run(*keeps, **environment):
    """MiB that stay in the process after each step, and what keep_freed_memory returned, which comes before some."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", STEP.format(keeps=keeps)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=clean | environment)
    return [(float(kept), told) for kept, told in map(str.split, result.stdout.splitlines())]


@pytest.mark.skipif(sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="needs glibc on Linux")
def test_what_a_step_frees_stays():
    (before, _), (kept, told) = run(False, True)
    assert before < 20
    assert told == "True" and kept > 60


def test_the_users_own_settings_stay():
    ((kept, told),) = run(True, MALLOC_ARENA_MAX="2")
    assert told == "False" and kept < 20
