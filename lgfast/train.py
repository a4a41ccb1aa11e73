"""Command line: `python -m lgfast.train [--recipe NAME] [--optim.lr 1e-3 ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lgfast.config import Config, dump_yaml, load_recipe, load_yaml, recipe_names, replace
from lgfast.config.flags import Parser, add_key_flags, check_no_leftover, key_changes
from lgfast.config.pycls import read_pycls_config
from lgfast.runtime import ranks, threads
from lgfast.runtime.command_line import command_line
from lgfast.runtime.door import open_door
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.sweep.options import add_sweep_options, check_join_options, check_no_sweep_options, is_sweep

if TYPE_CHECKING:
    from lgfast.records.result import Result
# lgfast.assembly.run is imported where a run is near: it brings timm and torchvision, for which --help need not wait

DEFAULT_RECIPE = "digits"
DESCRIPTION = "Train a vision transformer with locality guidance. Without arguments: the digits demo, on CPU or GPU."


def not_empty(text: str) -> str:
    """Return an option's value; refuse an empty one, since an unset shell variable must not mean the default."""
    if not text:
        raise argparse.ArgumentTypeError("expected a value, got an empty one")
    return text


def command_parser() -> argparse.ArgumentParser:
    """Make a parser with the options of a run and of a sweep, and a flag for every configuration key."""
    parser = Parser(prog="python -m lgfast.train", description=DESCRIPTION, add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--recipe", type=not_empty, help=f"recipe of the package ({', '.join(recipe_names())}) or a YAML file"
    )
    parser.add_argument(
        "--config", type=not_empty, help="YAML file of configuration keys, as a run folder's config.yaml"
    )
    parser.add_argument(
        "--from-pycls", type=not_empty, metavar="FILE", help="YAML of the paper's code; prints and runs the equivalent"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key; repeatable")
    parser.add_argument("--resume", type=not_empty, metavar="RUN", help="continue the run or the sweep in this folder")
    parser.add_argument(
        "--folds", type=int, metavar="K", help="cross-validate: train K times, each tested on another fold"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument("-h", "--help", action="store_true", help="show this text and every configuration key")
    add_sweep_options(parser)
    add_key_flags(parser)
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser, and the options of a command line."""
    parser = command_parser()
    options, leftover = parser.parse_known_args(argv)
    check_no_leftover(leftover)
    return parser, options


def read_config(options: argparse.Namespace) -> Config:
    """Return the configuration of a command line."""
    if options.resume:
        from lgfast.assembly.run_folder import resume_config

        return resume_config(options.resume, key_changes(options))
    return replace(base_config(options), key_changes(options))


def print_help(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Print the options, and every configuration key with its comment and its value in the recipe."""
    import tyro  # reads the comments beside the fields

    parser.print_help()
    print("\nconfiguration keys (--data.batch-size 64 and --set data.batch_size=64 mean the same):\n", flush=True)
    tyro.cli(Config, default=base_config(options), args=["--help"], prog=parser.prog, description=DESCRIPTION)


def base_config(options: argparse.Namespace) -> Config:
    """Return what the command line's keys build on: a recipe, a file of keys, or a file of the paper's code."""
    sources = [name for name in ("recipe", "config", "from_pycls") if getattr(options, name)]
    if len(sources) > 1:
        flags = " and ".join("--" + name.replace("_", "-") for name in sources)
        raise ValueError(f"{flags} each name a configuration; give one")
    if options.from_pycls:
        read = read_pycls_config(options.from_pycls)
        if ranks.is_speaker():
            print("".join(f"# {note}\n" for note in read.notes), end="")
        return read.config
    if options.config:
        return load_yaml(options.config)
    return load_recipe(options.recipe or DEFAULT_RECIPE)


def print_result(result: Result, before: str = "") -> None:
    """Print lines about a finished run, on the one rank that prints."""
    if not ranks.is_speaker():
        return
    if before:
        print(before)
    if result.teacher_test_top1 is not None:
        print(f"teacher test accuracy   {result.teacher_test_top1:6.2f} %   {result.teacher_run}")
    chosen = f"(epoch {result.best_epoch}, chosen on {result.selected_on})"
    print(f"student test accuracy   {result.test_top1:6.2f} %   {chosen}")
    print(f"          last epoch    {result.last_test_top1:6.2f} %")
    print(f"{result.seconds:.0f} s; metrics, curves and weights are in {result.run_dir}")
    print(result.verdict(), flush=True)


def cross_validate(config: Config, options: argparse.Namespace, interrupt: InterruptFlag) -> int:
    """Train and test on every fold, and print what they found together."""
    if options.folds < 2:
        raise ValueError(f"--folds: expected at least 2, got {options.folds}")
    if options.resume or ranks.was_launched_by_torchrun():
        raise ValueError(
            "--folds: starts its runs itself, one after another; drop --resume and torchrun (the same "
            "command with its --run-dir goes on where it stopped)"
        )
    from lgfast.sweep.folds import run_folds

    folds = run_folds(config, options.folds, interrupt)
    print("\n".join(folds.table().lines()))
    print(f"{len(folds.together.labels)} images, each tested once: {folds.top1:.2f} %; see {folds.folder}", flush=True)
    return 0


def sweep(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Start, join or continue a sweep."""
    if options.folds is not None:
        raise ValueError("--folds: cross-validates one setting; drop it, or --sweep and the sweep that --resume names")
    if ranks.was_launched_by_torchrun():
        raise ValueError("--sweep starts its own processes; run it without torchrun, with --workers-per-gpu K")
    if options.resume and (options.sweep or options.sweep_space):
        raise ValueError("--resume continues a sweep as it was started; drop --sweep, or start a new one with --out")
    from lgfast.sweep import command  # needs Optuna

    if options.sweep or options.sweep_space:
        return command.start(read_config(options), options)
    check_join_options(parser, options)
    return command.join(options, key_changes(options))


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    interrupt = InterruptFlag()
    try:
        parser, options = parse(sys.argv[1:] if argv is None else argv)
        if options.help:
            print_help(parser, options)
        if is_sweep(options):
            return sweep(parser, options)
        check_no_sweep_options(parser, options)
        config = read_config(options)
        if options.print_config or options.from_pycls:
            print(dump_yaml(config), end="", flush=True)
        if options.print_config:
            return 0
        from lgfast.assembly.run import train_run
        from lgfast.records.result import read_result

        if options.resume and (done := read_result(options.resume)):
            print_result(done, f"{options.resume} is already complete")
            return 0
        if options.resume:
            threads.compute_as_before(options.resume)
        elif chosen := threads.choice():
            print(chosen, flush=True)
        interrupt.install(repeat_ends=not ranks.was_launched_by_torchrun())
        if options.folds is not None:
            return cross_validate(config, options, interrupt)
        result = train_run(config, bool(options.resume), interrupt)
        print_result(result)
        if ranks.is_speaker() and config.log.report:
            from lgfast.reports.run_report import write_run_report_or_warn

            write_run_report_or_warn(Path(result.run_dir))
        return 0
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + interrupt.signal_number
    except torch.OutOfMemoryError as error:
        advice = "lower data.batch_size or, in a sweep, --group; or split the batch with step.accumulate"
        raise ValueError(f"{error}\n{advice}") from error


if __name__ == "__main__":
    sys.exit(main())
open_door(__name__)
