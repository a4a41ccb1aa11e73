"""Run one kernel once, under a profiler or a checker of memory.

    ncu --profile-from-start off ... python -m benchmarks.kernels.once NAME [--shape target]

Only the call itself runs between cudaProfilerStart and cudaProfilerStop.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from benchmarks.kernels.table import KERNELS


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=KERNELS)
    parser.add_argument("--shape", choices=("small", "target"), default="target")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(argv)
    os.environ["LGFAST_DISABLE"] = KERNELS[options.name].disabled
    import torch

    from benchmarks.kernels.checks import make_trial

    device = torch.device(options.device)
    trial, words = make_trial(options.name, options.shape, device)
    trial.reset()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    list(trial.call())
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    print(f"{options.name} {words}: ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
