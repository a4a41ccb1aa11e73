"""Run a driver of emulated kernels: send it bytes, and read the tensors that it leaves."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]  # requests name them by index


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def run_driver(
    program: Path, folder: Path, request: Iterable[bytes], results: Iterable[tuple[tuple[int, ...], torch.dtype]]
) -> tuple[list[Tensor], str]:
    """Return the tensors that the driver leaves, of the given shapes and dtypes, and what it prints."""
    (folder / "request").write_bytes(b"".join(request))
    command = [str(program), "request", "result"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    data, tensors = torch.frombuffer(bytearray((folder / "result").read_bytes()), dtype=torch.uint8), []
    for shape, dtype in results:
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        tensors.append(data[:num_bytes].clone().view(dtype).view(shape))
        data = data[num_bytes:]
    assert not data.numel(), f"{data.numel()} bytes of the result are left over"
    return tensors, done.stdout
