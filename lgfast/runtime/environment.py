"""Describe what a run was made with: versions, hardware, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lgfast.runtime.passwords import without_password
from lgfast.version import __version__

CPUINFO = Path("/proc/cpuinfo")  # Linux


def describe_environment() -> dict[str, Any]:
    """Return a plain dictionary for environment.json and benchmark rows."""
    return {
        "lgfast": __version__,
        "commit": git_commit(),
        "command": [without_password(argument) for argument in sys.argv],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": package_version("timm"),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_waiting": os.environ.get("OMP_WAIT_POLICY"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
    }


def cpu_name() -> str:
    """Return the processor's own name, or its architecture where that is not known."""
    return _cpuinfo("model name") or platform.machine()


def cpu_vendor() -> str:
    """Return what the processor calls its maker, such as GenuineIntel or AuthenticAMD; "" where that is not known."""
    return _cpuinfo("vendor_id")


def _cpuinfo(field: str) -> str:
    """Return the first processor's field of /proc/cpuinfo, "" where there is none."""
    found = re.search(rf"^{field}[ \t]*:(.*)", CPUINFO.read_text(), re.MULTILINE) if CPUINFO.exists() else None
    return found[1].strip() if found else ""


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torchvision_fix(torch_cuda: str | None) -> str:
    """Return the command that installs the torchvision for a torch that was built with this CUDA version."""
    tag = "cpu" if torch_cuda is None else "cu" + torch_cuda.replace(".", "")
    return f"pip install --force-reinstall --no-deps torchvision --index-url https://download.pytorch.org/whl/{tag}"


def git_commit() -> str | None:
    """Return the commit of the source tree, with "+changes" where files differ.

    For a copy without history return LGFAST_COMMIT, or None where that is not set.
    """
    try:
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("LGFAST_COMMIT")


def git(*arguments: str) -> str:
    """Run git in the package's folder and return what it prints."""
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
