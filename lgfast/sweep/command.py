"""`python -m lgfast.train --sweep ...`: start, join or continue a sweep, and say what came of it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from lgfast.assembly.device import resolve_precision
from lgfast.config import FREE_ON_RESUME, Config
from lgfast.records.checkpoint import WriteError, atomic_path
from lgfast.runtime.passwords import without_password
from lgfast.sweep.launch import start_workers, supervise, worker_environments
from lgfast.sweep.options import SWEEP_FILE
from lgfast.sweep.page import write_page
from lgfast.sweep.probe import predict
from lgfast.sweep.results import find_winner, measure_winner, write_results
from lgfast.sweep.space import Space, read_space
from lgfast.sweep.storage import SECRET_PLACE, unwritable, with_password
from lgfast.sweep.study import Plan, Study
from lgfast.sweep.table import Display, describe, failures, score, table
from lgfast.sweep.worker import StopFlag, Worker

JOURNAL = "study.journal"
GROUP = 8  # trials that share a process, where --group does not say
DRY_RUN_SHOWN = 20


def start(config: Config, options: argparse.Namespace) -> int:
    """Start the sweep of a command line; join it where the named study holds the same one already."""
    config = resolve_precision(config)  # once, for every machine that joins
    plan, environments = read_plan(config, options), worker_environments(options.workers, options.workers_per_gpu)
    if options.dry_run:
        return dry_run(plan, len(environments))
    out = Path(options.out or default_folder(config, options))
    place = options.study or str(out / JOURNAL)
    if not options.study and Path(place).exists():
        raise ValueError(f"--out: {out} already holds a sweep; continue or join it with --resume {out}")
    study = Study(place, options.study_name)
    try:
        is_new = study.create(plan)
    except OSError as error:
        if not options.study:
            Path(place).unlink()  # half a plan, in a file of our own
        raise unwritable(place, error) from None
    if not is_new and study.join().to_dict() != plan.to_dict():
        raise ValueError(
            f"--study: {study.place} holds another sweep named {options.study_name!r}; "
            "join it without --sweep, or give another --study-name"
        )
    return work(study, out, {}, environments, options)


def join(options: argparse.Namespace, changes: dict[str, Any]) -> int:
    """Join or continue a sweep by its folder (`--resume`) or its study (`--study`)."""
    for key in changes:
        if not key.startswith(FREE_ON_RESUME):
            raise ValueError(
                f"--study: {key} is fixed by the sweep; only where data lies and what it runs on may differ"
            )
    out, place, name = named_study(options)
    if "://" not in place and not Path(place).is_file():
        missing = "the sweep's journal is gone" if options.resume else "start a sweep with --sweep"
        raise ValueError(f"--study: no journal file {place}; {missing}")
    environments = worker_environments(options.workers, options.workers_per_gpu)
    study = Study(with_password(place), name)
    study.join()
    return work(study, out, changes, environments, options)


def named_study(options: argparse.Namespace) -> tuple[Path, str, str]:
    """Folder, place and name of the sweep to join. Beside `--resume`, `--study` gives the password again."""
    if not options.resume:
        return Path(options.out or default_folder(None, options)), options.study, options.study_name
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
    """Make the sweep's folder, which remembers its study."""
    text = json.dumps({"study": stored_place(study.place), "name": study.name}) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / SWEEP_FILE).exists() or (out / SWEEP_FILE).read_text() != text:
            with atomic_path(out / SWEEP_FILE) as temporary:
                temporary.write_text(text)
    except OSError as error:
        raise ValueError(f"--out: cannot write {out}: {error.strerror}; name another folder") from None


def stored_place(place: str) -> str:
    """What a folder remembers of its study's place: an absolute path, or the URL without its password."""
    return without_password(place) if "://" in place else str(Path(place).resolve())


def read_plan(config: Config, options: argparse.Namespace) -> Plan:
    """What the command line asks for, checked.

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


def default_folder(config: Config | None, options: argparse.Namespace) -> str:
    """Beside a journal file; by the study's name for a database; by name and time otherwise."""
    if options.study and "://" not in options.study:
        return str(Path(options.study).parent)
    if options.study:
        return f"runs/sweep-{options.study_name}"
    return f"runs/sweep-{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def work(
    study: Study, out: Path, here: dict[str, Any], environments: list[dict[str, str]], options: argparse.Namespace
) -> int:
    """Work on the study in this process or in several, then write the results."""
    open_folder(out, study)
    interrupt = StopFlag(options.budget).install()
    if options.worker:
        study.expected_workers = options.worker
        run_worker(study, out, here, interrupt, lambda: None)
        return 0
    print(f"sweep in {out}; another process or machine joins with: {join_command(study, out)}", flush=True)
    try:
        with Display(study) as display:
            if len(environments) == 1:
                run_worker(study, out, here, interrupt, display.update)
            else:
                run_workers(study, out, here, interrupt, display, environments)
            display.update(force=True)
        return conclude(study, out, here, interrupt)
    except (WriteError, OSError) as error:
        raise ValueError(f"{error}; make room for it, then continue with: {join_command(study, out)}") from error


def join_command(study: Study, out: Path) -> str:
    if "://" in study.place:
        return f"python -m lgfast.train --study {study.place} --study-name {study.name}"
    return f"python -m lgfast.train --resume {out}"


def run_worker(study: Study, out: Path, here: dict[str, Any], interrupt: StopFlag, on_change) -> None:
    study.announce()
    try:
        Worker(study, out, here, interrupt, on_change).work()
    finally:
        study.heartbeat.stop()


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


def conclude(study: Study, out: Path, here: dict[str, Any], interrupt: StopFlag) -> int:
    """Write tables, page and best configuration; test the winner once, unless the user stopped the sweep."""
    runs, settings = write_results(study, out)
    keys = [axis.key for axis in study.plan.space.axes]
    was_stopped = interrupt.requested and not interrupt.is_out_of_time
    winner = find_winner(settings)
    test = None
    if winner and not was_stopped:
        base = study.plan.base
        root, device = here.get("data.root", base.data.root), here.get("device", base.device)
        test = measure_winner(study, winner, runs, root, device)
        write_results(study, out)
    columns = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else None
    print("\n" + "\n".join([*table(settings, keys, columns=columns), *failures(runs)]))
    print(describe_winner(winner, test, out))
    for line in write_page(study, runs, settings, out):
        print(line)
    if interrupt.requested:
        print(f"stopped; continue with: {join_command(study, out)}", file=sys.stderr)
        return 128 + interrupt.signal_number if was_stopped else 0
    if any(run.state in ("waiting", "running", "saved") for run in runs):  # every worker ended before its time
        print(f"not finished; continue with: {join_command(study, out)}", file=sys.stderr)
        return 1
    if winner is None:
        print("no trial succeeded; their errors are listed above", file=sys.stderr)
        return 1
    return 0


def describe_winner(winner, test: dict[str, Any] | None, out: Path) -> str:
    if winner is None:
        return "no setting is complete yet"
    text = f"\nbest: setting {winner.setting}, validation {score(winner.mean, winner.seeds, winner.spread)} %"
    if test:
        seeds = len(test["top1"])
        text += f", test {score(test['mean'], seeds, test['spread'])} % ({seeds} seed{'s' * (seeds > 1)})"
    return f"{text}\ntrain it again with: python -m lgfast.train --config {out}/best.yaml; all runs in {out}/sweep.csv"


def dry_run(plan: Plan, workers: int) -> int:
    """Print the trials and the predicted time; nothing is kept."""
    settings = preview(plan.space, plan)
    configs = [plan.config_of(changes, seed) for changes in settings for seed in plan.space.seeds]
    print(f"{len(settings)} settings x {len(plan.space.seeds)} seeds = {len(configs)} trials")
    for number, changes in enumerate(settings[:DRY_RUN_SHOWN]):
        print(f"  setting {number}: {describe(changes)}")
    if len(settings) > DRY_RUN_SHOWN:
        print(f"  ... and {len(settings) - DRY_RUN_SHOWN} more")
    prediction = predict(configs, plan.group)
    print(
        f"{prediction.groups} groups of up to {plan.group}; predicted {prediction.total(workers) / 60:.1f} min with "
        f"{workers} worker(s), from {len(configs)} trials of {plan.base.epochs} epochs"
        + (f"; {prediction.teacher / 60:.1f} min of it train the teacher" if prediction.teacher else "")
    )
    return 0


def preview(space: Space, plan: Plan) -> list[dict[str, Any]]:
    """The settings of a grid; of a sampled space the first, and random ones in the number of the others."""
    if space.is_grid:
        return space.grid()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(space.own_values(plan.base))
    return [space.sample(study.ask(), plan.base) for _ in range(plan.trials or plan.group)]
