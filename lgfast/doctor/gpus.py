"""List NVIDIA GPUs by compute capability, and find which kernels of short_attention fit their shared memory."""

import importlib
from typing import NamedTuple

from lgfast.ops.short_attention import lack_of_smem


class Gpu(NamedTuple):
    """Known properties of a kind of GPU."""

    names: str
    block_smem: int  # the most shared memory of a block, in bytes


# Source: CUDA programming guide, technical specifications per compute capability.
GPUS = {
    (7, 5): Gpu("T4, RTX 20", 64 << 10),
    (8, 0): Gpu("A100, A30", 163 << 10),
    (8, 6): Gpu("A10, A40, RTX 30", 99 << 10),
    (8, 7): Gpu("Jetson Orin", 163 << 10),
    (8, 9): Gpu("L4, L40, RTX 40", 99 << 10),
    (9, 0): Gpu("H100, H200", 227 << 10),
    (10, 0): Gpu("B200", 227 << 10),
    (10, 3): Gpu("B300", 227 << 10),
    (11, 0): Gpu("Jetson Thor", 227 << 10),
    (12, 0): Gpu("RTX 50, RTX PRO 6000", 99 << 10),
    (12, 1): Gpu("GB10", 99 << 10),
}


class Attention(NamedTuple):
    """The shape of an attention."""

    queries: int
    keys: int
    head_dim: int

    @property
    def tokens(self) -> str:
        return str(self.queries) if self.queries == self.keys else f"{self.queries} x {self.keys}"


# The attention of the students at 224x224, and of ViT-S.
STUDENT_ATTENTIONS = {
    "DeiT-Ti, ViT-S, T2T-ViT": [Attention(197, 197, 64)],
    "ConViT-Ti": [Attention(196, 196, 48), Attention(197, 197, 48)],
    "PiT-Ti": [Attention(730, 730, 32), Attention(197, 197, 32), Attention(50, 50, 32)],
    "PVT-Ti": [Attention(3136, 49, 64), Attention(784, 49, 64), Attention(196, 49, 64), Attention(50, 50, 64)],
    "PVTv2-B0": [Attention(3136, 49, 32), Attention(784, 49, 32), Attention(196, 49, 32), Attention(49, 49, 32)],
    "CvT-13": [Attention(3136, 784, 64), Attention(784, 196, 64), Attention(197, 50, 64)],
}


def attention_kernels(max_smem: int, attention: Attention) -> str:
    """Return forward and backward kernel on a GPU that gives a block max_smem bytes, by the plan, or why there is
    none."""
    reason = lack_of_smem(max_smem, *attention)
    if reason is not None:
        return f"PyTorch's: {reason}"
    plan = importlib.import_module("lgfast._C").short_attention_plan(1, *attention, max_smem, has_bias=True)
    at_once = plan["fwd"]["key_rows"]
    forward = "all keys" if at_once >= attention.keys else f"{at_once} keys"
    return f"{forward} / {'resident' if plan['bwd']['resident'] else 'streamed'}"
