"""The numerical tests again as other processors, numbers of threads and seeds would run them: `make test-portable`.

A processor of a higher level can be held to a lower one, by the switches of PyTorch, oneDNN, MKL and lgfast; not the
other way round, so levels that this processor lacks are named and left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

from lgfast._extension import cpu_levels
from tests.cpu_levels import LEVELS

OPS = [
    f"tests/ops/test_{name}.py"
    for name in ("short_attention_cpu", "feature_mse", "add_layer_norm", "bias_gelu", "flat_adamw", "augment_pillow")
]
FUSION = ["tests/fusion/test_fusion.py", "tests/fusion/test_layer_fusion.py"]
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "LGFAST_CPU_LEVEL": "x86-64-v3",
}


class Setting(NamedTuple):
    """How the tests are run once."""

    name: str
    variables: dict[str, str]  # of the environment
    tests: list[str]


def settings() -> list[Setting]:
    """Every level of this processor, one and two threads, three seeds; no combination twice."""
    found = [
        Setting("as an AVX2 processor", AVX2, OPS + FUSION),
        Setting("without vector instructions in PyTorch", AVX2 | {"ATEN_CPU_CAPABILITY": "default"}, OPS),
        Setting("two threads", {"OMP_NUM_THREADS": "2"}, OPS),
    ]
    found += [Setting(f"seed {seed}", {"LGFAST_TEST_SEED": str(seed)}, OPS) for seed in (1, 2)]
    found += [
        Setting(f"lgfast at level {level}", {"LGFAST_CPU_LEVEL": level, "LGFAST_TEST_SEED": "3"}, OPS)
        for level in cpu_levels()
    ]
    return found


def main() -> int:
    missing = [level for level in LEVELS if level not in cpu_levels()]
    if missing:
        print(f"not run: {', '.join(missing)}, which this processor lacks")
    failed = [setting.name for setting in settings() if not passes(setting)]
    print(f"failed: {'; '.join(failed)}" if failed else "every setting passed")
    return 1 if failed else 0


def passes(setting: Setting) -> bool:
    variables = " ".join(f"{name}={value}" for name, value in setting.variables.items())
    print(f"== {setting.name}: {variables}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", *setting.tests]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"} | setting.variables).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
