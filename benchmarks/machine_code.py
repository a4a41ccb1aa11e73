"""Predict by a model how long each kernel's machine code takes on a GPU. No row is a measurement.

    python -m benchmarks.machine_code [--archs 90a,80,89,100,120] [--kernels augment_plain] [--out FOLDER]

An interpreter (benchmarks/model/) runs each kernel's code at the shape of a DeiT-Ti step, as the kernel's own planning
code launches it. From what the warps ran follow their clocks, and from those the time. The code of sm_90a is read from
lgfast/_cuda.so; nvcc compiles that of other architectures. pip's triton brings cuobjdump. A batch of augment is put
together from rows of single images (benchmarks/model/batches.py), of the same run or else committed ones. Rows are
marked `model`.

Columns:
    predicted_us    the time
    bound           the pipe that is busy for 80 % of the time; where there is none, latency, with the busiest pipe
    floor_us        the bytes, each moved once, over the bandwidth of a large copy
    instr_PIPE      instructions of warps, by pipe
    smem_wavefronts wavefronts of shared memory
    roles           the warps of the first block by what they do
    measured_us     the median of a smoke of the same GPU, where the results hold one
    ratio           measured_us / predicted_us
    calibrated_us   predicted_us times the geometric mean of all ratios
"""

from __future__ import annotations

import argparse
import csv
import datetime
import math
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import harness
from benchmarks.model import objects
from benchmarks.model.assumptions import GPUS, Gpu
from benchmarks.model.batches import BATCHES, PARTS, batch_row
from benchmarks.model.kernels import SUBJECTS, Subject
from benchmarks.model.predict import Prediction, predict
from lgfast import _extension
from lgfast.runtime.environment import git_commit

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LIBRARY = ROOT / "lgfast" / "_cuda.so"
BENCH = "machine-code"
KERNELS = SUBJECTS | PARTS
MAX_DRIFT = 0.05  # share by which a prediction may differ from its committed row


class Code:
    """The kernels of one architecture: read from the library where it has them, else compiled from their sources."""

    def __init__(self, arch: str, folder: Path) -> None:
        self.arch, self.folder = arch, folder
        shipped = LIBRARY.is_file() and f"{arch}-real" in _extension.build_info().get("cuda_archs", "")
        cubins = objects.extract(LIBRARY, arch, folder / arch) if shipped else []
        self.places = {name: cubin for cubin in cubins for name in objects.symbols(cubin)}
        self.known: dict[str, objects.Kernel] = {}

    def of(self, subject: Subject) -> Code:
        """Return the code that holds the kernels of a subject."""
        if self.places:
            return self
        include, folder = ROOT / "csrc", self.folder / self.arch
        compiled = [
            objects.compile_object(include / source, self.arch, folder, include, subject.options)
            for source in subject.sources
        ]
        cubins = [cubin for some in compiled for cubin in some]
        found = Code.__new__(Code)
        found.arch, found.folder, found.known = self.arch, self.folder, {}
        found.places = {name: cubin for cubin in cubins for name in objects.symbols(cubin)}
        return found

    def __getitem__(self, name: str) -> objects.Kernel:
        if name not in self.known:
            self.known[name] = objects.read(self.places[name], name)
        return self.known[name]


def row(name: str, subject: Subject, gpu: Gpu, found: Prediction) -> dict[str, object]:
    """Return one line of the CSV."""
    columns: dict[str, object] = {
        "op": name, "provider": "model", "mode": "predicted", "dtype": "bfloat16", "shape": subject.shape,
        "arch": f"sm_{gpu.arch}", "predicted_us": found.us, "bound": found.bound, "floor_us": found.floor_us,
        "num_bytes": found.num_bytes, "registers": found.registers, "stack_bytes": found.stack_bytes,
        "smem_bytes": found.smem_bytes, "threads": found.threads, "blocks": found.blocks,
        "blocks_at_once": found.resident, "warps_at_once": found.resident * found.threads // 32,
        "smem_wavefronts": found.wavefronts, "roles": found.roles, "unmodelled": " ".join(sorted(found.unmodelled)),
    }  # fmt: skip
    pipes = ("float", "half", "multiply", "double", "special", "tensor", "convert", "convert_double", "uniform")
    columns |= {f"instr_{pipe}": found.instructions[pipe] for pipe in (*pipes, "shared", "memory", "control")}
    return columns


def of_images(arch: str, lines: Iterable[dict[str, object]]) -> dict[str, float]:
    """Return the microseconds of an architecture's kernels: of these lines, else of the committed rows."""
    known: dict[str, object] = {op: row["predicted_us"] for (op, at), row in committed().items() if at == f"sm_{arch}"}
    known |= {str(line["op"]): line.get("predicted_us") for line in lines if line["arch"] == f"sm_{arch}"}
    return {op: float(str(us)) for op, us in known.items() if us}


def rows(names: Iterable[str], archs: Iterable[str], folder: Path) -> Iterator[dict[str, object]]:
    """Yield predictions. For a kernel that the architecture cannot run, or that cannot be read, yield the reason.

    Batches come last, from what was predicted of their images.
    """
    kernels = [*names]
    found: list[dict[str, object]] = []
    batches = [name for name in kernels if name in BATCHES]
    for arch in archs:
        gpu, code = GPUS[arch], Code(arch, folder)
        for name in [name for name in kernels if name not in BATCHES] + batches:
            try:
                if name in BATCHES:
                    line = batch_row(name, gpu, of_images(arch, found))
                else:
                    line = row(name, KERNELS[name], gpu, predict(KERNELS[name], gpu, code.of(KERNELS[name])))
            except (RuntimeError, KeyError, IndexError) as error:
                if isinstance(error, objects.MissingTool):
                    raise
                line = {"op": name, "provider": "model", "mode": "predicted", "arch": f"sm_{arch}"}
                line |= {"shape": shape_of(name), "error": harness.failure(error)}
            found.append(line)
            yield line


def shape_of(name: str) -> str:
    return f"32->224 B={BATCHES[name]}" if name in BATCHES else KERNELS[name].shape


def provenance(arch: str) -> dict[str, str]:
    return {
        "device": "model",
        "hardware": GPUS[arch].name,
        "compiler": _extension.build_info().get("cuda_compiler", ""),
        "commit": git_commit() or "",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def smoked(folder: Path, hardware: str) -> dict[str, float]:
    """Return the microseconds that a GPU needed for each kernel in its newest smoke."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*_smoke*.csv")):
        with path.open() as file:
            for line in csv.DictReader(file):
                is_of_it = (line["device"], line["hardware"], line["mode"]) == ("cuda", hardware, "target")
                if is_of_it and line.get("median_ms") and not line.get("error"):
                    found[line["op"]] = 1e3 * float(line["median_ms"])
    return found


def calibrated(lines: list[dict[str, object]], folder: Path) -> list[dict[str, object]]:
    """Add to the predictions what a smoke measured for the same kernels on the same GPU."""
    for hardware in {GPUS[str(line["arch"])[3:]].name for line in lines}:
        measured = smoked(folder, hardware)
        own = [line for line in lines if GPUS[str(line["arch"])[3:]].name == hardware and "predicted_us" in line]
        known = [line for line in own if line["op"] in measured]
        for line in known:
            line["measured_us"] = measured[line["op"]]
            line["ratio"] = line["measured_us"] / line["predicted_us"]
        if known:
            factor = math.exp(statistics.fmean(math.log(line["ratio"]) for line in known))
            for line in own:
                line["calibrated_us"] = factor * line["predicted_us"]
    return lines


def committed(folder: Path = RESULTS) -> dict[tuple[str, str], dict[str, str]]:
    """Return the newest committed rows, by kernel and architecture."""
    found = {}
    for path in sorted(folder.glob(f"*_{BENCH}*.csv"), key=lambda path: (path.name[:10], len(path.name), path.name)):
        with path.open() as file:
            found |= {(line["op"], line["arch"]): line for line in csv.DictReader(file)}
    return found


def drift(line: dict[str, object], known: dict[str, str]) -> str:
    """Say what to do if a prediction differs from its kernel's committed row by more than 5 %; return "" otherwise."""
    now, before = float(str(line["predicted_us"])), float(known["predicted_us"])
    if abs(now / before - 1) <= MAX_DRIFT:
        return ""
    verdict = "slower" if now > before else "faster"
    return (
        f"{line['op']} on {line['arch']} is {verdict}: {now:.1f} us predicted, {before:.1f} in the committed rows; "
        f"if that is meant, commit new ones (python -m benchmarks.machine_code --kernels {line['op']})"
    )


def write(lines: list[dict[str, object]], folder: Path) -> Path:
    """Write the rows to a file of their own, which no table of measurements reads."""
    date = provenance("90a")["date"][:10]
    stem = f"{date}_model_{BENCH}"
    names = [f"{stem}.csv", *(f"{stem}-{number}.csv" for number in range(2, 1000))]
    path = next(folder / name for name in names if not (folder / name).exists())
    full = [line | provenance(str(line["arch"])[3:]) for line in lines]
    columns = list(dict.fromkeys(key for line in full for key in line))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for line in full:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in line.items()})
    return path


def describe(line: dict[str, object]) -> str:
    if "error" in line:
        return f"{line['arch']:<8} {line['op']:<30} {line['error']}"
    times = f"{line['predicted_us']:8.1f} us, floor {line['floor_us']:6.1f}"
    return f"{line['arch']:<8} {line['op']:<30} {times}  {line['bound']:<24} {line['blocks_at_once']} blocks at once"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    harness.add_names(parser, "--archs", GPUS)
    harness.add_names(parser, "--kernels", [*KERNELS, *BATCHES])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV; default benchmarks/results")
    options = parser.parse_args(argv)
    lines = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for line in rows(options.kernels, options.archs, Path(folder)):
                print(describe(line), flush=True)
                lines.append(line)
    except objects.MissingTool as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(write(calibrated(lines, options.out), options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
