"""Run one case of short_attention through the emulated kernels: place its tensors in memory, run, read the results."""

import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tests.emulation.build import build
from tests.emulation.driver import raw, run_driver

# fp16's kernels are bf16's but for the type of what is multiplied: one dim shows its products and its conversions.
VARIANTS = [(torch.bfloat16, 32), (torch.bfloat16, 48), (torch.bfloat16, 64), (torch.float16, 64)]
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
INSTANCES = [
    f"csrc/short_attention/instances/{kernel}_{NAMES[dtype]}_d{dim}.cu"
    for kernel in ("fwd", "bwd")
    for dtype, dim in VARIANTS
]


@cache
def driver() -> Path:
    return build("short_attention_driver", ["tests/emulation/short_attention_driver.cpp", *INSTANCES])


@dataclass
class Result:
    out: Tensor
    lse: Tensor  # [B, H, N]
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dbias: Tensor | None  # [B, 3, H, D]


class Memory:
    """Buffers of 16-bit values and the strided [B, N, H, D] views into them."""

    def __init__(self):
        self.buffers = []

    def place(self, buffer: Tensor, view: Tensor | None = None) -> tuple[int, Tensor]:
        """Add `buffer` unless it is there already; return its index and the view (by default of all of it)."""
        view = buffer if view is None else view
        for index, known in enumerate(self.buffers):
            if known is buffer:
                return index, view
        self.buffers.append(buffer)
        return len(self.buffers) - 1, view


def poisoned(shape, dtype) -> Tensor:
    """Return NaN everywhere, so that an element that a kernel does not write shows."""
    return torch.full(shape, float("nan"), dtype=dtype)


def run_kernels(q, k, v, dout, scale, folder: Path, outputs, seeds=1, has_bias=False) -> Result:
    """Run forward and backward in the emulation.

    Args:
        q, k, v, dout: pairs of (buffer, [B, N, H, D] view into it; None: all of it).
        scale: softmax_scale.
        folder: for the request and the result.
        outputs: such pairs for out, dq, dk, dv.
        seeds: how many schedules to run; all must give the same bits.
        has_bias: whether backward also sums the gradients for a bias.
    """
    memory = Memory()
    out, dq, dk, dv = outputs
    placed = [memory.place(*pair) for pair in (q, k, v, out, dout, dq, dk, dv)]
    batch, queries, heads, dim = placed[0][1].shape
    keys = placed[1][1].shape[1]
    header = [int(q[0].dtype == torch.float16), batch, queries, keys, heads, dim, seeds, int(has_bias)]
    request = struct.pack("9qd", *header, len(memory.buffers), scale)
    for index, view in placed:
        request += struct.pack("5q", index, view.storage_offset(), *view.stride()[:3])
    request += struct.pack(f"{len(memory.buffers)}q", *(buffer.numel() for buffer in memory.buffers))
    results = [(buffer.shape, buffer.dtype) for buffer in memory.buffers]
    results += [((batch, heads, queries), torch.float32), ((has_bias * batch, 3, heads, dim), torch.float32)]
    (*buffers, lse, dbias), printed = run_driver(driver(), folder, [request, *map(raw, memory.buffers)], results)
    check_bank_conflicts(*map(int, printed.split()), dim)
    out, dq, dk, dv = (
        buffers[index].as_strided(view.shape, view.stride(), view.storage_offset())
        for index, view in (placed[i] for i in (3, 5, 6, 7))
    )
    return Result(out, lse, dq, dk, dv, dbias if has_bias else None)


def check_bank_conflicts(ldmatrix: int, copies: int, dim: int) -> None:
    """Allow bank conflicts only in copies into the padded rows of D = 48, a tenth of what shared memory moves."""
    assert ldmatrix == 0, f"{ldmatrix} bank conflicts of ldmatrix"
    assert copies == 0 or dim == 48, f"{copies} bank conflicts of cp_async_16"
