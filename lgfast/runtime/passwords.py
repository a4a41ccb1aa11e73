"""Keep passwords of database URLs out of what is shown and written."""

from __future__ import annotations

import re

# Matches up to the last "@", since a password may hold an unescaped one.
_USER_PART = re.compile(r"(://[^:/@?]*):.*@", re.DOTALL)
_PARAMETER = re.compile(r"(?<=[?&])(?:password|passwd|pwd|sslpassword|odbc_connect)=[^&]*&?", re.IGNORECASE)


def without_password(text: str) -> str:
    """Remove the password from a URL, or from a command-line argument with one; return any other text as it is."""
    head, scheme, tail = text.partition("://")
    if not scheme:
        return text
    text = _USER_PART.sub(r"\1@", head + scheme + tail)
    return _PARAMETER.sub("", text).rstrip("?&")
