"""Keeps passwords of database URLs out of what is shown and written."""

from __future__ import annotations

import re

# Up to the last "@": what follows an unescaped one in a password is part of it too.
_USER_PART = re.compile(r"(://[^:/@?]*):.*@", re.DOTALL)
_PARAMETER = re.compile(r"(?<=[?&])(?:password|passwd|pwd|sslpassword|odbc_connect)=[^&]*&?", re.IGNORECASE)


def without_password(text: str) -> str:
    """A URL, or a command-line argument that holds one, without its password; any other text as it is."""
    head, scheme, tail = text.partition("://")
    if not scheme:
        return text
    text = _USER_PART.sub(r"\1@", head + scheme + tail)
    return _PARAMETER.sub("", text).rstrip("?&")
