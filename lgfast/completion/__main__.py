"""Command line: `python -m lgfast.completion bash`: print a script with which a shell completes `lgfast`.

bash: lgfast completion bash > ~/.local/share/bash-completion/completions/lgfast
zsh: lgfast completion zsh > "${fpath[1]}/_lgfast"
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import shtab

from lgfast.config.flags import KEY_PREFIX
from lgfast.runtime.command_line import command_line
from lgfast.runtime.commands import COMMANDS

FOLDERS_AND_FILES = ("run", "runs", "model", "paths", "checkpoints", "checkpoint", "resume", "config", "data", "out")


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lgfast.completion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """`lgfast` with all its commands, their options and the keys of the configuration."""
    whole = argparse.ArgumentParser(prog="lgfast")
    commands = whole.add_subparsers(dest="command")
    for name, (module, about) in COMMANDS.items():
        own = importlib.import_module(f"lgfast.{module}").command_parser()
        for action in own._actions:
            show(action)
        commands.add_parser(name, parents=[own], add_help=False, conflict_handler="resolve", help=about)
    return whole


def show(action: argparse.Action) -> None:
    """Let an option be completed: a key, which --help leaves out, in one of its spellings; a path as a path."""
    if action.dest.startswith(KEY_PREFIX):
        action.help = "configuration key"
        action.option_strings = action.option_strings[:1]
    if action.dest in FOLDERS_AND_FILES and action.choices is None:
        action.complete = shtab.FILE  # type: ignore[attr-defined]


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    shell = command_parser().parse_args(argv).shell
    print(shtab.complete(whole_parser(), shell=shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
