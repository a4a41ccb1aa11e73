"""short_attention in plain PyTorch; scores and sums in float32 (float64 for float64), rounded once at the end."""

import torch
from torch import Tensor


def short_attention(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """out [B, N, H, D] in the dtype of q, and lse [B, H, N] float32, for q [B, N, H, D] and k, v [B, M, H, D]."""
    with torch.autocast(q.device.type, enabled=False):
        scores = _scores(q, k, softmax_scale)
        out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v.to(scores.dtype))
    return out.to(q.dtype).contiguous(), scores.logsumexp(-1).float()


def short_attention_grads(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, softmax_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv by the formulas of the backward kernel, in the wide dtype."""
    with torch.autocast(q.device.type, enabled=False):
        scores = _scores(q, k, softmax_scale)
        wide = scores.dtype
        # float64 keeps its own normaliser: the saved lse is float32
        p = scores.softmax(-1) if wide == torch.float64 else (scores - lse[..., None]).exp()
        dout, q, k, v, out = (x.to(wide) for x in (dout, q, k, v, out))
        dp = torch.einsum("bnhd,bmhd->bhnm", dout, v)
        delta = (dout * out).sum(-1).transpose(1, 2)
        ds = p * (dp - delta[..., None])
        dq = torch.einsum("bhnm,bmhd->bnhd", ds, k) * softmax_scale
        dk = torch.einsum("bhnm,bnhd->bmhd", ds, q) * softmax_scale
        dv = torch.einsum("bhnm,bnhd->bmhd", p, dout)
    return dq, dk, dv


def _scores(q: Tensor, k: Tensor, softmax_scale: float) -> Tensor:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.einsum("bnhd,bmhd->bhnm", q.to(wide), k.to(wide)) * softmax_scale
