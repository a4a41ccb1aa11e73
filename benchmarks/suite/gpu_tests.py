"""Runs the tests marked `gpu`, from the files that have some: others may need packages that a GPU image lacks.

python -m benchmarks.suite.gpu_tests [pytest's arguments]
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_files() -> list[str]:
    """Test files that mark a test or all of them, from the repository root."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "pytest.mark.gpu" in path.read_text()]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    files = [] if any(word.startswith("tests/") for word in arguments) else test_files()
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files, *arguments], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
