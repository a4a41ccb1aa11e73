"""Connect the processes of one run: torchrun's ranks. Without torchrun every function is trivial."""

from __future__ import annotations

import contextlib
import inspect
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from lgfast.runtime.rendezvous import Start, meet, open_store


def was_launched_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def local_rank() -> int:
    """Return this rank's number on its machine, which chooses the GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_speaker() -> bool:
    """Whether this process prints the run's result; this is known before the ranks join."""
    return os.environ.get("RANK", "0") == "0"


def run_name() -> str:
    """Return a name that all ranks share and that survives torchrun's restarts."""
    return gather({"name": f"torchrun-{os.getppid()}"})[0]["name"]


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Start]:
    """Connect the ranks that torchrun launched within a `with` block: by NCCL on GPUs, gloo on CPUs."""
    if not was_launched_by_torchrun() or dist.is_initialized():
        yield Start()
        return
    here, count, store = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), open_store()
    start = meet(store, here, count, dist.default_pg_timeout)
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if is_cuda else "gloo",
        store=dist.PrefixStore(f"start-{start.number}", store),
        rank=here,
        world_size=count,
        device_id=device if is_cuda else None,
    )
    try:
        yield start
    finally:
        for graph in _graphs:
            graph.reset()
        dist.destroy_process_group()


_graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()


def end_before_parting(graph: torch.cuda.CUDAGraph) -> None:
    """Reset a graph when the ranks part: it may hold their exchanges, and NCCL waits for such graphs to end."""
    if world() > 1:
        _graphs.add(graph)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def backend() -> str:
    """What carries the ranks' exchanges: nccl or gloo."""
    return str(dist.get_backend())


def is_writer() -> bool:
    """Whether this process writes the run's files and prints."""
    return rank() == 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum elementwise over the ranks."""
    if world() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def all_reduce_max(values: Tensor) -> Tensor:
    """Take the elementwise maximum over the ranks."""
    if world() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank; all ranks must ask at the same point."""
    return flag if world() == 1 else bool(all_reduce_max(torch.tensor(float(flag), device=device)) > 0)


def gather(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the value of every rank, in order."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        dist.barrier()


def distribute(module: nn.Module) -> nn.Module:
    """Wrap the module so that backward averages its gradients over the ranks; its buffers stay as they are."""
    if world() == 1:
        return module
    device = next(module.parameters()).device
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch < 2.14
    options: dict[str, Any] = {option: False, "device_ids": [device] if device.type == "cuda" else None}
    return DistributedDataParallel(module, **options)


def statistics(module: nn.Module) -> list[Tensor]:
    """Return the statistics that BatchNorm layers track."""
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm) and child.track_running_stats]
    return [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]


@torch.no_grad()
def broadcast(tensors: Sequence[Tensor]) -> None:
    """Copy the first rank's values to every rank, in one exchange; the tensors have one dtype."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.broadcast(flat, 0)
    for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Average the gradients over the ranks, in float32 and in one exchange."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world() == 1 or not grads:
        return
    flat = torch.cat([grad.float().flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= world()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))
