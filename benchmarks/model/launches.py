"""The launches of each kernel at a shape: the operations' own planning code makes memory, parameters and grid."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.model.interpreter import Memory
from benchmarks.model.objects import MissingTool

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "model"


@dataclass(frozen=True)
class Launch:
    """One kernel launch: mangled name, grid (x, y, z), threads of a block, its shared memory, parameters by value."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    smem_bytes: int
    parameters: bytes

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass
class Case:
    """An operation at a shape.

    Attributes:
        launches: in order.
        tensors: by name; they must live as long as the launches.
        memory: the same tensors, for the interpreter.
        num_bytes: bytes that the operation must move if it reads and writes each value once.
    """

    launches: list[Launch]
    tensors: dict[str, Tensor]
    memory: Memory
    num_bytes: float


@functools.cache
def library() -> ctypes.CDLL:
    """Return the planning code, compiled with a device layer that runs nothing; build it if its sources changed.

    Raises:
        MissingTool: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise MissingTool("no C++ compiler: g++ or clang++, or CXX")
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = [*(ROOT / "csrc").rglob("*.*"), *HERE.rglob("*.h"), HERE / "launches.cpp"]
    target, newest = BUILD / "launches.so", max(path.stat().st_mtime for path in sources)
    if not target.exists() or target.stat().st_mtime < newest:
        with tempfile.NamedTemporaryFile(dir=BUILD, suffix=".so", delete=False) as file:
            options = [
                "-std=c++17",
                "-O0",
                "-fPIC",
                "-shared",
                "-DLGFAST_EMULATION",
                "-Wno-unknown-pragmas",
                "-x",
                "c++",
            ]
            includes = [f"-I{ROOT / 'csrc'}", f"-I{HERE / 'recorder'}"]
            subprocess.run([compiler, *options, *includes, str(HERE / "launches.cpp"), "-o", file.name], check=True)
        os.replace(file.name, target)
    found = ctypes.CDLL(str(target))
    for name in ("attention", "guidance", "guidance_backward", "adamw", "layer_norm", "gelu", "views", "launch_kernel"):
        getattr(found, name).restype = ctypes.c_char_p
    found.memory_of_views.restype = ctypes.c_int64
    found.launch_shape.restype = ctypes.POINTER(ctypes.c_int)
    return found


class Arguments:
    """The tensors handed to the library. The interpreter can read and write their memory."""

    def __init__(self) -> None:
        self.memory, self.tensors = Memory(), {}

    def add(self, name: str, tensor: Tensor) -> ctypes.c_void_p:
        self.tensors[name] = tensor
        view = tensor.view(torch.uint8) if tensor.numel() else tensor
        return ctypes.c_void_p(self.memory.add(view.numpy()) if tensor.numel() else 0)

    def random(self, name: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> ctypes.c_void_p:
        return self.add(name, torch.randn(shape, dtype=torch.float32).to(dtype))

    def empty(self, name: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> ctypes.c_void_p:
        return self.add(name, torch.zeros(shape, dtype=dtype))

    def case(self, record: Callable[[], bytes | None], num_bytes: float) -> Case:
        """Return the case of what `record` launches.

        Raises:
            RuntimeError: the launch is refused.
        """
        if error := record():
            raise RuntimeError(error.decode())
        return Case([launch(i) for i in range(library().num_launches())], self.tensors, self.memory, num_bytes)


def launch(number: int) -> Launch:
    shape, data = library().launch_shape(number), ctypes.POINTER(ctypes.c_ubyte)()
    count = library().launch_parameters(number, ctypes.byref(data))
    name = library().launch_kernel(number).decode()
    return Launch(name, tuple(shape[:3]), shape[3], shape[4], bytes(data[:count]))


def attention(batch: int, tokens: int = 197, heads: int = 3, is_backward: bool = False) -> Case:
    """Return short_attention of packed q, k, v with D = 64; backward includes the gradient of the bias."""
    a = Arguments()
    values = (
        a.random("qkv", batch, tokens, 3, heads, 64),
        a.random("out", batch, tokens, heads, 64),
        a.random("dout", batch, tokens, heads, 64),
        a.empty("dqkv", batch, tokens, 3, heads, 64),
        a.empty("lse", batch, heads, tokens, dtype=torch.float32),
        a.empty("dbias", batch, 3, heads, 64, dtype=torch.float32),
    )
    moved = a.tensors["qkv"].nbytes + a.tensors["out"].nbytes
    record = functools.partial(library().attention, batch, tokens, heads, *values, int(is_backward))
    return a.case(record, moved * (2 if is_backward else 1))


def guidance_backward(batch: int, sides: tuple[int, int, int] = (14, 14, 14)) -> Case:
    """Return feature_mse's backward: the launch that scales the stored gradient."""
    a, count = Arguments(), sum(batch * s * s * c for c, s in zip(CHANNELS, sides, strict=True))
    grad, dloss = a.random("grad", count), a.add("dloss", torch.ones(1))
    record = functools.partial(library().guidance_backward, grad, dloss, a.empty("out", count), ctypes.c_int64(count))
    return a.case(record, 2 * a.tensors["grad"].nbytes)


# grad_scale, 1 - beta1, beta2, 1 - beta2, decay, step_size, inv_sqrt_bias_correction2, eps
ADAMW_FACTORS = (1.0, 0.1, 0.999, 0.001, 1 - 5e-4 * 0.05, 5e-3, 31.0, 1e-8)
CHANNELS, TEACHER_SIDES = (16, 32, 64), (32, 16, 8)


def guidance(batch: int, sides: tuple[int, int, int] = (14, 14, 14)) -> Case:
    """Return feature_mse of three pairs, with its gradient."""
    a = Arguments()

    def pointers(values: Iterable[ctypes.c_void_p]) -> ctypes.Array:
        return (ctypes.c_void_p * 3)(*(value.value for value in values))

    shapes = list(zip(CHANNELS, sides, TEACHER_SIDES, strict=True))
    students = [a.random(f"student{k}", batch, s * s, c) for k, (c, s, _) in enumerate(shapes)]
    teachers = [a.random(f"teacher{k}", batch, t, t, c) for k, (c, _, t) in enumerate(shapes)]
    sizes = [batch * s * s * c for c, s, _ in shapes]
    a.empty("grad", sum(sizes))
    start = a.tensors["grad"].data_ptr()
    grads = [ctypes.c_void_p(start + 2 * sum(sizes[:k])) for k in range(3)]
    partials = a.empty("partials", 64 * batch, dtype=torch.float64)
    counter = a.empty("counter", 1, dtype=torch.int32)
    scalars = (
        a.add("weight", torch.full((1,), 2.5)),
        *(a.empty(x, 1, dtype=torch.float32) for x in ("loss", "weighted")),
    )
    numbers = [(ctypes.c_int * 3)(*values) for values in (CHANNELS, sides, TEACHER_SIDES)]
    record = functools.partial(
        library().guidance, batch, *numbers, *map(pointers, (students, teachers, grads)), partials, counter, *scalars
    )
    maps = sum(a.tensors[name].nbytes for name in a.tensors if name[:7] in ("student", "teacher"))
    return a.case(record, maps + a.tensors["grad"].nbytes)


def adamw(sizes: tuple[int, ...]) -> Case:
    """Return flat_adamw's update with bfloat16 gradients and copy, without norm and control, which run before it."""
    a, total = Arguments(), sum(-(-size // 8) * 8 for size in sizes)
    grads = [a.random(f"grad{k}", size).value for k, size in enumerate(sizes)]
    buffers = [a.random(name, total, dtype=torch.float32) for name in ("params", "m", "v")]
    a.tensors["v"].abs_()
    low = a.empty("low", total)
    factors = a.add("factors", torch.tensor(ADAMW_FACTORS).repeat(len(sizes), 1))
    control = a.add("control", torch.tensor([1.0, 0.0], dtype=torch.float64))  # scale; not skipped
    pointers = (ctypes.c_void_p * len(sizes))(*grads)
    record = functools.partial(
        library().adamw, len(sizes), (ctypes.c_int * len(sizes))(*sizes), pointers, *buffers, low, factors, control
    )
    return a.case(record, total * (2 + 6 * 4 + 2))


def layer_norm(batch: int, tokens: int = 197, channels: int = 192, is_backward: bool = False) -> Case:
    """Return add_layer_norm with the factors of stochastic depth."""
    a, rows = Arguments(), batch * tokens
    values = [a.random("weight", channels), a.random("scale", batch)]
    if is_backward:
        values += [a.random(name, rows, channels) for name in ("dout", "dy", "y")]
        values += [a.random(name, rows, dtype=torch.float32) for name in ("mean", "rstd")]
        values += [a.empty(name, rows, channels) for name in ("dx", "dresidual")]
        values += [a.empty("dparams", 2, channels), a.empty("partials", 1024, 2, channels, dtype=torch.float32)]
    else:
        values += [a.random(name, rows, channels) for name in ("x", "residual")] + [a.random("bias", channels)]
        values += [a.empty(name, rows, channels) for name in ("y", "out")]
        values += [a.empty(name, rows, dtype=torch.float32) for name in ("mean", "rstd")]
    pointers = (ctypes.c_void_p * len(values))(*(value.value for value in values))
    sizes = (ctypes.c_int64(rows), ctypes.c_int64(tokens), channels)
    record = functools.partial(library().layer_norm, *sizes, pointers, int(is_backward))
    return a.case(record, 2 * rows * channels * (5 if is_backward else 4))


def gelu(batch: int, tokens: int = 197, channels: int = 768, is_backward: bool = False) -> Case:
    """Return bias_gelu of an MLP's hidden layer."""
    a, rows = Arguments(), batch * tokens
    values = (
        a.random("x", rows, channels),
        a.random("bias", channels),
        a.random("dout", rows, channels),
        a.empty("out", rows, channels),
        a.empty("dbias", channels),
        a.empty("partials", 2048, channels, dtype=torch.float32),
    )
    record = functools.partial(library().gelu, ctypes.c_int64(rows), channels, *values, int(is_backward))
    return a.case(record, 2 * rows * channels * (3 if is_backward else 2))


def views(plan: Tensor, images: Tensor) -> Case:
    """Return augment of a batch: plan [B, columns] float64, images [B, h, w, 3] uint8."""
    a, batch = Arguments(), len(plan)
    side = images.shape[1]
    pixels = a.add("pixels", images.flatten())
    offsets = a.add("offsets", torch.arange(batch) * side * side * 3)
    sizes = a.add("sizes", torch.full((batch, 2), side, dtype=torch.int32))
    indices, rows = a.add("indices", torch.arange(batch)), a.add("plan", plan.contiguous())
    made, teacher = a.empty("images", batch, 3, 224, 224), a.empty("teacher", batch, 3, 32, 32)
    memory = a.empty("memory", memory_of_views(batch), dtype=torch.uint8)
    places = (pixels, offsets, sizes, indices, rows, made, teacher, memory)
    record = functools.partial(library().views, ctypes.c_int64(batch), plan.shape[1], *places)
    return a.case(record, images.nbytes + a.tensors["images"].nbytes + a.tensors["teacher"].nbytes)


def memory_of_views(batch: int, size: int = 224) -> int:
    """Return the bytes of global memory in which the GPU planned for makes the views of a batch, [size, size] each."""
    return library().memory_of_views(ctypes.c_int64(batch), size)


def use_gpu(multiprocessors: int, smem_bytes: int, has_wgmma: bool = False) -> None:
    """Set the GPU that the planning code plans for from now on."""
    library().set_gpu(multiprocessors, smem_bytes, int(has_wgmma))
