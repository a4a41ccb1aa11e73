"""Runs the numerical tests as other processors would: `make test-portable`.

Each run holds lgfast's kernels to a level of instructions, PyTorch to no higher one, and has another number of threads
and other random numbers. Its line can be typed again.
"""

import os
import subprocess
import sys

from lgfast import _extension

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
TWO_THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}  # beside other work, waiting threads would spin
RUNS = [
    {"LGFAST_CPU_LEVEL": "default", **AVX2, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
    {"LGFAST_CPU_LEVEL": "x86-64-v3", **AVX2, "OMP_NUM_THREADS": "1"},
    {"LGFAST_CPU_LEVEL": "x86-64-v3", **AVX2, **TWO_THREADS},
    {"LGFAST_CPU_LEVEL": "x86-64-v4", "OMP_NUM_THREADS": "1"},
    {"LGFAST_CPU_LEVEL": "avx512_bf16", **TWO_THREADS},
]
SEEDS = 3  # 1 to 3 in turn; `make test` has seed 0
OPS = [
    f"tests/ops/test_{op}.py"
    for op in ["add_layer_norm", "bias_gelu", "feature_mse", "flat_adamw", "short_attention", "vit_block"]
]
MODELS = [
    "tests/fusion/test_fusion.py",
    "tests/fusion/test_layer_fusion.py",
]  # with PyTorch at its default they take minutes
NUMERICAL = "float64 or reference or torch or bit"


def run(settings: dict[str, str], seed: int) -> bool:
    settings = {**settings, "LGFAST_TEST_SEED": str(seed)}
    files = OPS + MODELS if settings.get("ATEN_CPU_CAPABILITY") == "avx2" else OPS
    workers = ["-n", "auto"] if settings["OMP_NUM_THREADS"] == "1" else []  # threads of several workers would wait
    command = [sys.executable, "-m", "pytest", "-q", *workers, "-k", NUMERICAL, "-m", "not gpu", *files]
    print(*(f"{name}={value}" for name, value in settings.items()), "pytest -k", repr(NUMERICAL), *files, flush=True)
    return subprocess.run(command, env={**os.environ, **settings}).returncode == 0


def main() -> int:
    levels = _extension.cpu_levels()
    here = [settings for settings in RUNS if not levels or settings["LGFAST_CPU_LEVEL"] in levels]
    passed = [run(settings, 1 + i % SEEDS) for i, settings in enumerate(here)]
    print(f"{sum(passed)} of {len(here)} runs passed; levels here: {', '.join(levels) or 'no CPU kernels'}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
