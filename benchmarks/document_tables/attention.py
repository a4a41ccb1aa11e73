"""The table of short_attention's kernels: which of them run on which GPU, by their plan."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from lgfast import _extension
from lgfast.doctor.gpus import GPUS, STUDENT_ATTENTIONS, attention_kernels
from lgfast.ops.short_attention import FIRST_CAPABILITY
from lgfast.reports.table import Table


def attention_by_gpu(results: Path) -> str | None:
    """Return the table; None if lgfast._C, which knows the plan, is not built."""
    if not _extension.has_native():
        return None
    limits: dict[int, list[str]] = {}
    for capability, gpu in sorted(GPUS.items(), key=lambda item: (item[1].block_smem, item[0])):
        if capability >= FIRST_CAPABILITY:
            limits.setdefault(gpu.block_smem, []).append("{}.{}".format(*capability))
    lines = []
    for student, attentions in STUDENT_ATTENTIONS.items():
        for cells, alike in groupby(attentions, lambda one: [attention_kernels(limit, one) for limit in limits]):
            alike = list(alike)
            tokens = ", ".join(one.tokens for one in alike)
            lines.append([f"{student}: {tokens} tokens", str(alike[0].head_dim), *cells])
    gpus = [f"{', '.join(names)} ({limit >> 10} KB)" for limit, names in limits.items()]
    return Table(["attention at 224", "head dim", *gpus], lines).markdown()
