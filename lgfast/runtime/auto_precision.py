"""What `precision=auto` means on a device."""

from __future__ import annotations

from typing import Literal

import torch

from lgfast import _extension
from lgfast.runtime.environment import cpu_vendor


def auto_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """Return bf16 where the device has instructions for it and they make a step faster, else fp32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # oneDNN has them in products and convolutions; the reference ops in PyTorch lose more than those gain
        has_bf16 = torch.backends.mkldnn.is_available() and _multiplies_bf16_faster()
    return "bf16" if has_bf16 else "fp32"


def _multiplies_bf16_faster() -> bool:
    """Whether the processor has products of bfloat16 that are faster than those of float32.

    AVX512_BF16 adds two products where an FMA of float32 adds one, but Intel's processors start half as many of its
    instructions: there only AMX makes bfloat16 faster.
    """
    if _extension.cpu_level() != "avx512_bf16":
        return False
    return cpu_vendor() != "GenuineIntel" or torch.cpu._is_amx_tile_supported()
