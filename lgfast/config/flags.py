"""Command-line flags of the configuration's keys: `--optim.lr 1e-3` says what `--set optim.lr=1e-3` says."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn, get_origin

from lgfast.config.keys import check_key, split_assignment, valid_keys

KEY_PREFIX = "key "  # of what argparse stores keys under, apart from the names of the other options


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ValueErrors, so that a command line prints them in one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def add_key_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every key, with - or _ between words; truth values need no value and have a negated flag too."""
    for key, hint in valid_keys().items():
        section, dot, leaf = key.rpartition(".")
        form: dict[str, Any] = {"dest": destination(key), "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        if hint is bool:
            parser.add_argument(*spellings(key), nargs="?", const="true", **form)
            parser.add_argument(*spellings(f"{section}{dot}no_{leaf}"), action="store_const", const="false", **form)
        else:
            parser.add_argument(*spellings(key), nargs="*" if get_origin(hint) is tuple else None, **form)


def spellings(key: str) -> list[str]:
    return list(dict.fromkeys((f"--{key.replace('_', '-')}", f"--{key}")))


def destination(key: str) -> str:
    return f"{KEY_PREFIX}{key}"


def key_changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keys that a parsed command line sets, by `--set` and by flags; a flag wins over a `--set`."""
    changes: dict[str, Any] = dict(split_assignment(text) for text in options.set)
    for key in valid_keys():
        value = getattr(options, destination(key), None)
        if value is not None:
            changes[key] = " ".join(value) if isinstance(value, list) else value
    return changes


def check_no_leftover(arguments: list[str]) -> None:
    """Raise a ValueError for an argument that is no option, with the nearest valid key."""
    for argument in arguments:
        if argument.startswith("--"):
            check_key(argument[2:].partition("=")[0].replace("-", "_"))
        raise ValueError(f"expected an option such as --optim.lr 1e-3, got {argument!r}")
