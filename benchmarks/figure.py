"""Draw the documents' pictures from committed runs.

python benchmarks/figure.py            # writes docs/images/guidance.svg, fewer-images.svg and all-images.svg
python benchmarks/figure.py --check    # fails where a picture shows other numbers than the newest runs have
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of benchmarks/

from benchmarks.document_tables.rows import RESULTS
from benchmarks.pictures import all_images, fewer_images, guidance
from benchmarks.pictures.svg import shown

PICTURES = (guidance, fewer_images, all_images)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="draw nothing; fail where picture and results differ")
    options = parser.parse_args(argv)
    stale = 0
    for picture in PICTURES:
        found = json.loads(json.dumps(picture.series(RESULTS)))
        if not options.check:
            picture.draw(found, picture.PICTURE)
            print(f"wrote {picture.PICTURE}")
        elif shown(picture.PICTURE) != found:
            print(f"{picture.PICTURE} is not what the results say; run: python benchmarks/figure.py", file=sys.stderr)
            stale += 1
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
