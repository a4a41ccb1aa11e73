"""Command line of the doctor."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lgfast.data import DATASET_NAMES
from lgfast.doctor.dataset import find_datasets, inspect_dataset
from lgfast.doctor.environment import collect_facts, inspect_environment
from lgfast.doctor.finding import Finding, print_findings
from lgfast.doctor.kernels import inspect_gpu, parse_capability
from lgfast.runtime.command_line import command_line


def capability_option(text: str) -> tuple[int, int]:
    try:
        return parse_capability(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lgfast.doctor", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="ROOT", help="check the datasets in this folder")
    parser.add_argument("--dataset", choices=DATASET_NAMES, help="check this one (default: all that are found in ROOT)")
    parser.add_argument("--labels", default="", metavar="FILE", help="CSV with the labels, as data.labels has it")
    parser.add_argument(
        "--label-separator",
        default="",
        metavar="TEXT",
        help="as data.label_separator, where images have several labels",
    )
    parser.add_argument(
        "--pixels", choices=("rgb", "stored"), default="rgb", help="as data.pixels: keep the files' channels and bits"
    )
    parser.add_argument(
        "--gpu", type=capability_option, metavar="X.Y", help="what is native on a GPU of this compute capability"
    )
    return parser


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 where nothing is wrong, else 1."""
    options = command_parser().parse_args(argv)
    if options.gpu is not None:
        return 0 if print_findings(inspect_gpu(options.gpu)) else 1
    if options.label_separator and not options.labels:
        raise ValueError("--label-separator: classes are parted in a table; name it with --labels")
    if options.data is None and options.dataset is None and not options.labels:
        return 0 if print_findings(inspect_environment(collect_facts())) else 1

    root = (options.data or Path("data")).expanduser()
    if options.data and not root.is_dir():
        print_findings(
            [Finding("error", f"{root}: no such folder", "give --data the folder that holds the dataset's files")]
        )
        return 1
    found = ["folder"] if options.labels else find_datasets(root)
    names = [options.dataset] if options.dataset else found
    if not names:
        fix = f"name the one you expect with --dataset ({', '.join(DATASET_NAMES)}) to see what it should look like"
        print_findings([Finding("error", f"{root}: no known dataset here", fix)])
        return 1
    healthy = []
    for name in names:
        print(f"{name} in {root}")
        healthy.append(
            print_findings(inspect_dataset(name, root, options.labels, options.label_separator, options.pixels))
        )
    return 0 if all(healthy) else 1


if __name__ == "__main__":
    sys.exit(main())
