"""Options of a sweep's command line. Imports nothing else of the sweep, so that plain runs do not load Optuna."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

PRUNERS = ("none", "median", "hyperband")
ONLY_SWEEPS = ("trials", "budget", "pruner", "study_name", "out", "group", "workers", "workers_per_gpu", "dry_run")
SWEEP_FILE = "sweep.json"  # in a sweep's folder: which study it belongs to


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sweeps")
    add = group.add_argument
    add("--sweep", action="append", default=[], metavar="KEY=V1,V2", help="every combination of values; repeatable")
    add("--sweep-space", metavar="FILE", help="YAML of ranges and choices, from which Optuna samples")
    add("--trials", type=int, metavar="N", help="settings to sample from --sweep-space")
    add("--budget", type=seconds, metavar="TIME", help="stop and save after this long: 90s, 30m, 2h")
    add("--pruner", choices=PRUNERS, help="stops settings that lose (default: median with --sweep-space, else none)")
    add("--study", metavar="PLACE", help="journal file or Optuna URL; naming an existing study joins it")
    add("--study-name", default="lgfast", metavar="NAME", help="which study of a database")
    add("--out", metavar="FOLDER", help="folder of the sweep's runs and results (default: runs/sweep-...)")
    add("--group", type=int, metavar="K", help="trials that share a process, batch and teacher pass (default: 8)")
    add("--workers", type=int, default=1, metavar="N", help="worker processes to start on this machine")
    add("--workers-per-gpu", type=int, default=0, metavar="K", help="start K worker processes on every GPU instead")
    add("--worker", type=int, help=argparse.SUPPRESS)  # in a process that --workers started: how many it started
    add("--dry-run", action="store_true", help="print the trials and the predicted time, start none")


def is_sweep(options: argparse.Namespace) -> bool:
    """Whether a parsed command line asks for a sweep, or to continue or join one."""
    named = options.sweep or options.sweep_space or options.study
    return bool(named or (options.resume and (Path(options.resume) / SWEEP_FILE).is_file()))


def check_no_sweep_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Raise a ValueError if the command line of a single run has an option that would have no effect."""
    for name in ONLY_SWEEPS:
        if getattr(options, name) != parser.get_default(name):
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} is an option of sweeps; add --sweep KEY=V1,V2 or --sweep-space FILE, or drop it"
                + (" (the folder of a single run is --run_dir)" if name == "out" else "")
            )


def check_join_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Raise a ValueError if a command line that joins a sweep sets what the sweep has fixed."""
    for name in ("trials", "pruner", "group", "dry_run"):
        if getattr(options, name) != parser.get_default(name):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is fixed when a sweep is started; drop it to join or continue this one")


def seconds(text: str) -> float:
    """Convert "90s", "30m" or "2h" to seconds. Refuse a number without a unit, which could be any of them."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a time with its unit, such as 90s, 30m or 2h, got {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
