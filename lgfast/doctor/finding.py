"""The lines of the doctor's report."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

BUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."  # reinstalls lgfast with the torch at hand
MARKS = {"ok": "ok     ", "note": "note   ", "warning": "WARNING", "error": "ERROR  "}


@dataclass(frozen=True)
class Finding:
    """One result of a check. `fix` is one command or action; it is empty where nothing has to be done."""

    level: Literal["ok", "note", "warning", "error"]
    text: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"\n           fix: {self.fix}" if self.fix else ""
        return f"{MARKS[self.level]}  {self.text}{fix}"


def print_findings(findings: Iterable[Finding]) -> bool:
    """Print findings as they come; return whether none of them is an error."""
    is_healthy = True
    for finding in findings:
        print(finding, flush=True)
        is_healthy = is_healthy and finding.level != "error"
    return is_healthy
