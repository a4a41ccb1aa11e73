"""Answers of torch and of the build about GPUs that are not here."""

from types import SimpleNamespace

import torch

from lgfast import _extension


def use_architectures(monkeypatch, cuda_archs):
    monkeypatch.setattr(_extension, "build_info", lambda: {"cuda_archs": cuda_archs})
    monkeypatch.setattr(_extension, "_cuda_architectures", _extension._architectures())


def use_gpus(monkeypatch, capabilities, smem_kb=227):
    """As if these GPUs were here, and nothing had been said of any yet."""

    gpus = [
        SimpleNamespace(major=major, minor=minor, shared_memory_per_block_optin=smem_kb << 10)
        for major, minor in capabilities
    ]
    monkeypatch.setattr(_extension, "has_cuda_kernels", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpus[device.index or 0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capabilities[0])
    monkeypatch.setattr(_extension, "_warned", set())
