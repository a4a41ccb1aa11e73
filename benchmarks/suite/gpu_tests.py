"""Run the tests marked `gpu`, each file in a process of its own: a broken kernel ends the process that it runs in.

    python -m benchmarks.suite.gpu_tests [--workers 6] [--seconds 240] [--junit FOLDER] [files...]

It runs only files that have such tests, since others may need packages that a GPU image lacks. Several run at a time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PASSED, NOTHING_RAN = 0, 5  # exit codes of pytest
COMMAND = (sys.executable, "-m", "pytest", "-v", "--tb=short", "-m", "gpu", "-p", "no:cacheprovider")
CORES = os.cpu_count() or 1
WORKERS = max(1, min(6, CORES // 2))
THREADS = max(1, CORES // WORKERS)  # threads of a file's process


def test_files() -> list[str]:
    """Return the test files with tests marked `gpu`, relative to the repository root."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "pytest.mark.gpu" in path.read_text()]


def run(file: str, junit: Path | None, seconds: float) -> tuple[str, int, str]:
    """Run pytest on a file; return the file, the exit code and the output."""
    command = [*COMMAND, file]
    if junit is not None:
        command += ["--junitxml", str(junit / f"{file.removesuffix('.py').replace('/', '.')}.xml")]
    options = {"cwd": ROOT, "env": {"OMP_NUM_THREADS": str(THREADS)} | os.environ, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:
        try:
            said = process.communicate(timeout=seconds)[0].strip()
        except subprocess.TimeoutExpired:  # such as a kernel that does not end: the last line names the test
            process.kill()
            said = f"{process.communicate()[0].strip()}\nnot finished after {seconds:.0f} s"
    return file, process.returncode, said


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=WORKERS, help="files at a time")
    parser.add_argument("--seconds", type=float, default=240, help="time limit of a file")
    parser.add_argument("--junit", type=Path, help="folder for an XML report of each file")
    parser.add_argument("files", nargs="*", help="default: all that have tests marked gpu")
    options = parser.parse_args(argv)
    files = options.files or test_files()
    failed = []
    with ThreadPoolExecutor(options.workers) as pool:
        for running in as_completed([pool.submit(run, file, options.junit, options.seconds) for file in files]):
            file, code, text = running.result()
            print(f"\n{file}: exit code {code}\n{text}", flush=True)
            if code not in (PASSED, NOTHING_RAN):
                failed.append(f"{file} ({(text.splitlines() or [''])[-1].strip('= ')})")
    print(f"\n{len(files) - len(failed)} of {len(files)} files passed{'; failed: ' * bool(failed)}{', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
