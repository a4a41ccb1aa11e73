"""What `precision=auto` means on a device."""

from __future__ import annotations

from typing import Literal

import torch

from lgfast import _extension


def auto_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """Return bf16 where the device has instructions for it and they make a step faster, else fp32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # oneDNN has them in products and convolutions; the reference ops in PyTorch lose more than those gain
        has_bf16 = torch.backends.mkldnn.is_available() and _extension.cpu_level() == "avx512_bf16"
    return "bf16" if has_bf16 else "fp32"
