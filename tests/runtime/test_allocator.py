"""keep_freed_memory: what a step frees is not given back to the system."""

import os
import subprocess
import sys

import pytest

STEP = """
import torch
from lgfast.runtime.allocator import keep_freed_memory
told = keep_freed_memory() if {keep} else None
def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
def step():
    blocks = [torch.ones(1 << 20) for _ in range(16)]  # 64 MiB in all, more than glibc keeps by itself
before = resident_mib()
step()
print(resident_mib() - before, told)
"""


def run(keep, **environment):
    """MiB that stay in the process after a step, and what keep_freed_memory returned."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", STEP.format(keep=keep)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=clean | environment)
    kept, told = result.stdout.split()
    return float(kept), told


@pytest.mark.skipif(sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="needs glibc on Linux")
def test_what_a_step_frees_stays():
    kept, told = run(keep=True)
    assert told == "True" and kept > 60
    assert run(keep=False)[0] < 20


def test_the_users_own_settings_stay():
    kept, told = run(keep=True, MALLOC_ARENA_MAX="2")
    assert told == "False" and kept < 20
