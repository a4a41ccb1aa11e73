"""What the operations ask of their tensors alike."""

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_floating(op: str, **tensors: Tensor) -> None:
    """Raise a ValueError that names the first argument that is no tensor of a floating dtype."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
        if x.dtype not in FLOATING:
            raise ValueError(f"{op}: {name} must be float32, float64, bfloat16 or float16, got {x.dtype}; cast it")


def check_tensor(op: str, name: str, x: Tensor, dtype: torch.dtype, *shape: int | str) -> None:
    """Raise a ValueError unless x is a contiguous tensor of a dtype and shape.

    Args:
        shape: sizes; a name stands for any.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    fits = x.dim() == len(shape) and all(
        isinstance(size, str) or size == own for size, own in zip(shape, x.shape, strict=True)
    )
    if x.dtype != dtype or not fits or not x.is_contiguous():
        layout = "" if x.is_contiguous() else " not contiguous"
        expected = f"contiguous {str(dtype).removeprefix('torch.')} [{', '.join(map(str, shape))}]"
        got = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}{layout}"
        raise ValueError(f"{op}: {name} must be {expected}, got {got}")


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for x's device; of the meta device torch does not say."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)
