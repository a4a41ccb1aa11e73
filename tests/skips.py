"""One line at the end of the tests: how many were skipped, for what the machine lacks, and what would run them."""

import re
from collections import Counter
from collections.abc import Iterable

# Text in the reason of a skip, what is missing, and what would run the tests. The first that is found counts.
CAPABILITIES = [
    (r"could not import '([\w.]+)'", r"\1", r"pip install \1"),
    (r"extra \[(\w+)\]", r"the extra \1", r"pip install '.[\1]'"),
    (r"avx512_bf16", "bfloat16 products", "a processor with AVX512_BF16, as Sapphire Rapids or Zen 4"),
    (r"CUDA device", "a GPU", "make test-gpu where there is one"),
    (r"without a GPU|on a GPU", "no GPU", "a machine without one, or CUDA_VISIBLE_DEVICES="),
    (
        r"lgfast\._cuda is not built for sm_(\w+)",
        r"kernels for sm_\1",
        'TORCH_CUDA_ARCH_LIST="8.0 9.0a 10.0 12.0+PTX" make build',
    ),
    (r"nvcc|lgfast\._cuda", "nvcc", "the CUDA toolkit on PATH, then make build"),
    (r"native|lgfast\._C|the reference|planted", "lgfast's kernels", "make build with a C++ compiler"),
]


def capability(reason: str) -> str:
    """What a test was skipped for, with what would run it in brackets; where that is unknown, the reason."""
    for pattern, missing, remedy in CAPABILITIES:
        if found := re.search(pattern, reason):
            return found.expand(f"{missing} ({remedy})")
    return reason


def line(reasons: Iterable[str]) -> str:
    """`3 skipped: 2 for a GPU (make test-gpu where there is one), 1 for mlflow (pip install mlflow)`."""
    counts = Counter(map(capability, reasons))
    return f"{counts.total()} skipped: " + ", ".join(f"{count} for {what}" for what, count in counts.most_common())


def pytest_terminal_summary(terminalreporter) -> None:
    reports = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in reports if isinstance(report.longrepr, tuple)]
    if reasons:
        terminalreporter.write_line(line(reasons))
