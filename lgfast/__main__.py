"""Command line: `lgfast COMMAND ...`, which is `python -m lgfast.COMMAND ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lgfast.runtime.commands import COMMANDS
from lgfast.runtime.interrupt import while_loading
from lgfast.runtime.suggestions import did_you_mean, nearest
from lgfast.runtime.threads import spare_other_work
from lgfast.version import __version__


def usage() -> str:
    lines = [f"  {name:20}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: lgfast COMMAND ...", "", *lines, "", "`lgfast COMMAND --help` lists what a command takes."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"lgfast {__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        hint = did_you_mean(nearest(command, list(COMMANDS)), "`lgfast --help` lists the commands")
        print(f"error: unknown command {command!r}; {hint}", file=sys.stderr)
        return 2
    spare_other_work()  # before torch is loaded
    while_loading()
    return importlib.import_module(f"lgfast.{COMMANDS[command][0]}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
