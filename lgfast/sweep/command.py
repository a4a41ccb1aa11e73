"""`python -m lgfast.train --sweep ...`: start, join or continue a sweep."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from lgfast.assembly.device import resolve_precision
from lgfast.assembly.images import settle
from lgfast.config import FREE_ON_RESUME, Config
from lgfast.records.files import write_text
from lgfast.runtime.passwords import without_password
from lgfast.runtime.paths import user_path
from lgfast.sweep.display import Display
from lgfast.sweep.dry_run import dry_run
from lgfast.sweep.ending import conclude, join_command
from lgfast.sweep.launch import start_workers, supervise, worker_environments
from lgfast.sweep.options import SWEEP_FILE
from lgfast.sweep.space import read_space
from lgfast.sweep.storage import SECRET_PLACE, is_url, unwritable, with_password
from lgfast.sweep.study import Plan, Study
from lgfast.sweep.worker import StopFlag, Worker, may_pass

JOURNAL = "study.journal"
GROUP = 8  # trials that share a process, where --group does not say


def start(config: Config, options: argparse.Namespace) -> int:
    """Start the sweep of a command line; join it where the named study holds the same one already."""
    config = settle(resolve_precision(config))  # once, for every machine that joins
    plan, environments = read_plan(config, options), worker_environments(options.workers, options.workers_per_gpu)
    if options.dry_run:
        return dry_run(plan, environments)
    out = Path(options.out or default_folder(config.name, options))
    study = start_shared(plan, options) if options.study else start_own(plan, out, options)
    return work(study, out, {}, environments, options)


def start_own(plan: Plan, out: Path, options: argparse.Namespace) -> Study:
    """Make a study in the sweep's own folder. The folder names it first, so that `--resume` works whatever ends the
    start."""
    place = out / JOURNAL
    study = Study(str(place), options.study_name)
    if stored := other_study(out, study):
        raise ValueError(f"--out: {out} holds the sweep kept in {stored}; continue it with --resume {out}")
    if study.find_plan(0):
        raise ValueError(f"--out: {out} already holds a sweep; continue or join it with --resume {out}")
    try:
        open_folder(out, study)
        study.create(plan)
    except OSError as error:
        for path in (out / SWEEP_FILE, place):  # they may hold half a plan
            path.unlink(missing_ok=True)
        raise unwritable(str(place), error) from None
    return study


def other_study(out: Path, study: Study) -> str | None:
    """The place of the study that the folder names, if that is another one."""
    try:
        named = json.loads((out / SWEEP_FILE).read_text())["study"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return named if named != stored_place(study.place) else None


def start_shared(plan: Plan, options: argparse.Namespace) -> Study:
    """Make a study that other processes may start at the same moment."""
    study = Study(options.study, options.study_name)
    try:
        is_new = study.create(plan)
    except OSError as error:
        raise unwritable(study.place, error) from None
    if not is_new and study.join().to_dict() != plan.to_dict():
        raise ValueError(
            f"--study: {study.place} holds another sweep named {options.study_name!r}; "
            "join it without --sweep, or give another --study-name"
        )
    return study


def join(options: argparse.Namespace, changes: dict[str, Any]) -> int:
    """Join or continue a sweep by its folder (`--resume`) or its study (`--study`)."""
    for key in changes:
        if not key.startswith(FREE_ON_RESUME):
            raise ValueError(
                f"--study: {key} is fixed by the sweep; only where data lies and what it runs on may differ"
            )
    out, place, name = named_study(options)
    if not is_url(place) and not user_path(place).exists():
        missing = "the sweep's journal is gone" if options.resume else "start a sweep with --sweep"
        raise ValueError(f"--study: no journal file {place}; {missing}")
    environments = worker_environments(options.workers, options.workers_per_gpu)
    study = Study(with_password(place), name)
    study.join()
    return work(study, out, changes, environments, options)


def named_study(options: argparse.Namespace) -> tuple[Path, str, str]:
    """Return folder, place and name of the sweep to join. Beside `--resume`, `--study` gives the password again."""
    if not options.resume:
        return Path(options.out or default_folder("", options)), options.study, options.study_name
    out = Path(options.resume)
    try:
        named = json.loads((out / SWEEP_FILE).read_text())
        stored, name = named["study"], named["name"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"--resume: {out / SWEEP_FILE} is damaged; name the study instead: --study {out / JOURNAL} --out {out}"
        ) from None
    place = options.study or stored
    if stored_place(place) != stored:
        raise ValueError(f"--study: the sweep in {out} is kept in {stored}, not {without_password(place)}")
    return out, place, name


def open_folder(out: Path, study: Study) -> None:
    """Make the sweep's folder, with the file that names its study."""
    text = json.dumps({"study": stored_place(study.place), "name": study.name}) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / SWEEP_FILE).exists() or (out / SWEEP_FILE).read_text() != text:
            write_text(out / SWEEP_FILE, text)
    except OSError as error:
        raise ValueError(f"--out: cannot write {out}: {error.strerror}; name another folder") from None


def stored_place(place: str) -> str:
    """The form in which a folder keeps a study's place: an absolute path, or the URL without its password."""
    return without_password(place) if is_url(place) else str(user_path(place).resolve())


def read_plan(config: Config, options: argparse.Namespace) -> Plan:
    """Read and check what the command line asks for.

    Raises:
        ValueError: unknown keys, impossible values, or options that do not go together.
    """
    space = read_space(options.sweep, options.sweep_space, config)
    if space.is_grid and options.trials:
        raise ValueError("--trials: --sweep runs every combination; to sample, describe the axes with --sweep-space")
    if not space.is_grid and not (options.trials or options.budget):
        raise ValueError("--sweep-space: say how much to sample with --trials N or --budget 30m")
    if options.trials is not None and options.trials < 1:
        raise ValueError(f"--trials: at least 1, got {options.trials}")
    group = GROUP if options.group is None else options.group
    if group < 1 or options.workers < 1:
        raise ValueError(f"--group and --workers: at least 1, got {group} and {options.workers}")
    pruner = options.pruner or ("none" if space.is_grid else "median")
    return Plan(config, space, options.trials, pruner, group)


def default_folder(name: str, options: argparse.Namespace) -> str:
    """The folder where --out names none: beside a journal file, after a database's study, else after name and time."""
    if options.study and not is_url(options.study):
        return str(user_path(options.study).parent)
    if options.study:
        return f"runs/sweep-{options.study_name}"
    return f"runs/sweep-{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def work(
    study: Study, out: Path, here: dict[str, Any], environments: list[dict[str, str]], options: argparse.Namespace
) -> int:
    """Work on the study in this process or in several, then write the results."""
    open_folder(out, study)
    interrupt = StopFlag(options.budget)
    interrupt.install()
    study.should_stop = lambda: interrupt.was_asked
    if options.worker:
        study.expected_workers = options.worker
        run_worker(study, out, here, interrupt, lambda: None)
        return 0
    print(f"sweep in {out}; another process or machine joins with: {join_command(study, out)}", flush=True)
    try:
        study.fill()
        with Display(study, budget_s=interrupt.left_s) as display:
            if len(environments) == 1:
                run_worker(study, out, here, interrupt, display.update)
            else:
                run_workers(study, out, here, interrupt, display, environments)
            display.update(force=True)
        return conclude(study, out, here, interrupt)
    except Exception as error:
        if not may_pass(error):
            raise
        raise ValueError(
            f"{getattr(error, 'fact', error)}; mend that, then continue with: {join_command(study, out)}"
        ) from error


def run_worker(study: Study, out: Path, here: dict[str, Any], interrupt: StopFlag, on_change) -> None:
    heartbeat = study.announce()
    try:
        Worker(study, out, here, interrupt, on_change).work()
    finally:
        heartbeat.stop()


def run_workers(study: Study, out: Path, here: dict[str, Any], interrupt: StopFlag, display: Display, extra) -> None:
    command = ["--worker", str(len(extra)), "--study", study.place, "--study-name", study.name, "--out", str(out)]
    command += [word for key, value in here.items() for word in ("--set", f"{key}={value}")]
    secret = {SECRET_PLACE: study.secret_place}  # not among the arguments, which every user of the machine can list
    processes = start_workers(command, [own | secret for own in extra], out / "workers")
    codes = supervise(processes, interrupt, display.update)
    for number, code in enumerate(codes):
        if code:
            log = out / "workers" / f"worker-{number}.log"
            last = (log.read_text(errors="replace").splitlines() or ["no output"])[-1]
            print(f"worker {number} ended with code {code}: {last}; see {log}", file=sys.stderr)
