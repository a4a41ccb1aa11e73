"""Write the tables of README.md and docs/: measurements from benchmarks/results/, kernels by GPU from their plan.

    python benchmarks/tables.py            # rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`
    python benchmarks/tables.py --check    # fails if a document differs from the results

Of every hardware, the newest file that has a subject's rows and peers counts. A ratio compares rows of one file.
document_tables/ makes the tables.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of benchmarks/

from benchmarks.document_tables.accuracy import accuracy  # noqa: E402
from benchmarks.document_tables.attention import attention_by_gpu  # noqa: E402
from benchmarks.document_tables.headline import headline  # noqa: E402
from benchmarks.document_tables.methods import methods, pvtv2  # noqa: E402
from benchmarks.document_tables.rows import RESULTS  # noqa: E402
from benchmarks.document_tables.throughput import throughput  # noqa: E402

DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "guidance", "install")))
TABLES: dict[str, Callable[[Path], str | None]] = {
    "headline": headline,
    "throughput": throughput,
    "accuracy": accuracy,
    "methods": methods,
    "pvtv2": pvtv2,
    "attention_by_gpu": attention_by_gpu,
}


def render(text: str, results: Path) -> str:
    """Return the text with every table made anew, except those that cannot be made here.

    Raises:
        ValueError: a table is unknown, or has no end.
    """

    def table(found: re.Match) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"unknown table {found[2]!r}; known: {', '.join(TABLES)}")
        made = TABLES[found[2]](results)
        return found[0] if made is None else f"{found[1]}\n{made}\n<!-- end -->"

    made, count = re.subn(r"(<!-- table: (\w+) -->)\n.*?<!-- end -->", table, text, flags=re.DOTALL)
    if count != text.count("<!-- table:"):
        raise ValueError("a table has no `<!-- end -->`")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a document differs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("documents", type=Path, nargs="*", default=DOCUMENTS, help="default: README.md and docs/")
    options = parser.parse_args(argv)
    stale = 0
    for document in options.documents:
        text = document.read_text()
        made = render(text, options.results)
        if made == text:
            continue
        stale += 1
        if options.check:
            print(f"{document} is not what the results say; run: python benchmarks/tables.py", file=sys.stderr)
        else:
            document.write_text(made)
            print(f"wrote {document}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
