"""Handle errors in all command lines alike, and readers of the output that leave early."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from lgfast._extension import refusal
from lgfast.runtime.compilation import compiler_failure
from lgfast.runtime.interrupt import loaded
from lgfast.runtime.printable import printable

PACKAGE = Path(__file__).parents[1]
BOMB = "Image size .* could be decompression bomb"  # Pillow's warning; data.max_pixels decides on such images
Main = Callable[..., int]  # takes the arguments, or None for those of the process


def command_line(main: Main) -> Main:
    """Decorate the `main` of a command line, which takes its arguments and returns its exit status.

    An error that the user can mend (ValueError, OSError, an argument that a native operation refused, packages that do
    not fit) becomes one line and exit status 2. A warning of this package becomes one line too, and so does Ctrl-C,
    with exit status 130. Where nobody reads the output any more, as after `| head`, the command ends silently.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        loaded()
        format_before, warnings.formatwarning = warnings.formatwarning, format_warning
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: file names may not be valid text
        try:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", BOMB)
                    return answer(main, argv)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            if not is_stdout_closed():
                raise
            return 128 + signal.SIGPIPE
        finally:
            warnings.formatwarning = format_before

    return run


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format this package's warnings as one line; others keep their file and line."""
    if category is UserWarning and Path(filename).is_relative_to(PACKAGE):
        return f"warning: {lines(str(message))}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def answer(main: Main, argv: Sequence[str] | None) -> int:
    """Call `main` and return its exit status; print its errors in one line."""
    try:
        return main(argv)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        message = mendable(error)
        if not message:
            raise
        log_traceback(error)
        print(f"error: {lines(message)}", file=sys.stderr)
        return 2


def mendable(error: Exception) -> str | None:
    """Return the message of an error that the user can mend, and None for a fault of the program."""
    if isinstance(error, RuntimeError):
        return refusal(error) or compiler_failure(error)
    if isinstance(error, ImportError) and error.name is not None:  # Python's own; ours say what does not fit
        return None
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def lines(message: str) -> str:
    """Make a message printable, whatever file names it holds."""
    return "\n".join(map(printable, message.split("\n")))


def is_stdout_closed() -> bool:
    """Whether nobody reads standard output any more; if so, drop what is still to be written to it."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # reports only errors
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def log_traceback(error: Exception) -> None:
    """Write the full traceback to a file beside the runs, for bug reports; the terminal shows only the message."""
    folder = Path("runs")
    if folder.is_dir():
        text = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):  # a full disk may be the error itself
            (folder / "last_error.txt").write_text(text, errors="backslashreplace")
