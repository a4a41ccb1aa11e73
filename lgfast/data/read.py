"""Read the bytes of files. A file that cannot be read may be sound, which is another error than broken content."""

import os
import stat
from pathlib import Path


class UnreadableError(OSError):
    """A file or folder that cannot be read now, such as one without permission; what it holds is not known."""

    def __init__(self, path: Path | str, reason: object) -> None:
        super().__init__(f"{path}: cannot be read ({reason}); it may be sound: mend this and start again")
        self.about = path, reason

    def __reduce__(self) -> tuple[type["UnreadableError"], tuple[Path | str, object]]:  # it may cross processes
        return type(self), self.about


def read_file(path: Path) -> bytes:
    """Read the content of a regular file.

    Raises:
        ValueError: there is no regular file: the name is a link to nothing, a pipe, a device, a socket.
        UnreadableError: there may be one, but reading it fails.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
            raise ValueError(f"{path}: is no file but a {kind(mode)}")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing" + (", the link leads nowhere" if os.path.islink(path) else "")) from None
    except OSError as error:
        raise UnreadableError(path, error.strerror or error) from error


def read_text(path: Path) -> str:
    """The content of a text file, errors as `read_file`; bytes that are no UTF-8 become surrogates, as in names."""
    return read_file(path).decode(errors="surrogateescape")


def kind(mode: int) -> str:
    """The kind of a file that is not a regular one, such as "a folder", from its `st_mode`."""
    tests = {"folder": stat.S_ISDIR, "pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    return next((name for name, is_it in tests.items() if is_it(mode)), "device")
