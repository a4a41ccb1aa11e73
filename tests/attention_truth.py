"""The cases, the truth and the bound for short_attention's kernels, in the emulation and on a GPU."""

import torch
from torch import Tensor

from tests.rounding import Truth, assert_rounded, truth

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
HEAD_DIMS = (32, 48, 64)
LENGTHS = (1, 7, 16, 17, 49, 64, 65, 196, 197, 208, 256, 730)
ROW_CAPACITY_EDGES = (112, 128, 129, 150, 170, 192, 193, 209, 240, 257)  # where forward changes kernel or tiles
UNEQUAL = ((196, 49), (1, 17), (17, 1), (65, 197), (33, 256), (40, 300), (300, 16), (900, 49))  # queries, keys


def scores_of(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return torch.einsum("bnhd,bmhd->bhnm", q, k) * scale


def attention(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, scale: float) -> dict[str, Tensor]:
    """Plain PyTorch in the dtype of its arguments: out, dq, dk, dv as [B, N, H, D] and lse [B, H, N]."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    scores = scores_of(q, k, scale)
    out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)
    values = [out, *torch.autograd.grad(out, (q, k, v), dout), scores.logsumexp(-1)]
    return {name: x.detach() for name, x in zip(("out", "dq", "dk", "dv", "lse"), values, strict=True)}


def true_attention(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, scale: float) -> dict[str, Truth]:
    """The result that `attention` should give where intermediate values have q's dtype, but lse float32."""
    wide = [x.double() for x in (q, k, v, dout)]
    found = truth(lambda: attention(*wide, scale), q.dtype)
    return {**found, "lse": truth(lambda: scores_of(*wide[:2], scale).logsumexp(-1), torch.float32)}


def check(results: dict[str, Tensor], q: Tensor, k: Tensor, v: Tensor, dout: Tensor, scale: float) -> None:
    """Every result errs from float64 by no more than rounding explains."""
    expected = true_attention(q, k, v, dout, scale)
    for name, value in results.items():
        assert_rounded(value.detach(), expected[name], name)


def check_bias_gradient(dbias: Tensor, gradients: list[Tensor]) -> None:
    """dbias [B, 3, H, D] sums unrounded gradients over tokens: what rounding them first would add bounds the error."""
    for i, gradient in enumerate(gradients):
        bound = 2**-7 * gradient.double().abs().sum(1).max().item()
        torch.testing.assert_close(dbias[:, i].double(), gradient.double().sum(1), rtol=2**-7, atol=bound)
