"""short_attention: softmax attention for short sequences, forward and backward each in one kernel."""

import importlib

import torch
import torch.nn.functional as F
from torch import Tensor

from lgfast import _extension
from lgfast.ops import reference
from lgfast.ops.constant import assume_constant_result
from lgfast.ops.gradient import register_gradient
from lgfast.ops.inputs import check_floating, is_autocast
from lgfast.ops.once import warn_once
from lgfast.ops.transforms import needs_composition, vmap_loop

HEAD_DIMS = (32, 48, 64)
MAX_TOKENS = 1024
FEW_KEYS, MAX_QUERIES_FEW_KEYS = 64, 4096
FIRST_CAPABILITY = (8, 0)  # of a GPU: asynchronous copies, products of bfloat16


def short_attention(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, *, layout: str | None = None
) -> Tensor:
    """Softmax attention for 1 to about 1,000 tokens.

        out = softmax(softmax_scale * q k^T) v

    Args:
        q: [B, N, H, D]. k, v: [B, M, H, D], of q's dtype and device. bfloat16 or float16 (on CPU float32 too) with D
            in {32, 48, 64} and N, M up to 1,024 (N up to 4,096 for M up to 64) run lgfast's kernels;
            `short_attention_unsupported_reason` says what keeps other inputs from them, which run PyTorch's
            scaled_dot_product_attention. Any strides; where D is contiguous and the other strides are multiples of 8
            nothing is copied. Under autocast, cast to its dtype. torch.func.grad and forward mode run SDPA too.
        softmax_scale: positive; default D**-0.5.
        layout: "bnhd", as above, or "bhnd": q, k, v and the result are [B, H, N, D], as scaled_dot_product_attention's.
            None: "bnhd", with a warning where there are more heads than tokens, as in tensors made for SDPA.
    Returns:
        [B, N, H, D] in the dtype of q. Products are summed and the softmax taken in float32. Deterministic: two runs of
        forward and backward agree bit for bit.
    Raises:
        ValueError: shapes, dtypes or devices do not match, or the layout is neither.
        RuntimeError: backward through the kernels with create_graph=True; they have no second derivative.
    Source: FlashAttention-2 (arXiv 2307.08691), for sequences whose keys fit on chip.

    >>> q, k, v = torch.randn(3, 2, 197, 4, 32).unbind(0)
    >>> short_attention(q, k, v).shape
    torch.Size([2, 197, 4, 32])
    """
    _check(q, k, v, layout)
    if layout == "bhnd":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    elif layout is None and q.shape[2] > max(q.shape[1], k.shape[1]):
        warn_once(
            f"short_attention takes [B, N, H, D], got q {list(q.shape)} with more heads than tokens; pass "
            'layout="bhnd" for tensors as scaled_dot_product_attention takes them, layout="bnhd" if they are right'
        )
    q, k, v = (x.to(compute_dtype(x)) for x in (q, k, v))
    if short_attention_unsupported_reason(q, k, v, softmax_scale) is not None or needs_composition():
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
        return out if layout == "bhnd" else out.transpose(1, 2)
    out = _short_attention_fwd(q, k, v, _scale(q, softmax_scale))[0]
    return out.transpose(1, 2) if layout == "bhnd" else out


def short_attention_qkvpacked(
    qkv: Tensor, softmax_scale: float | None = None, added_bias: Tensor | None = None
) -> Tensor:
    """Self-attention of packed queries, keys and values; their gradient comes back packed, without a copy.

    Args:
        qkv: [B, N, 3, H, D], as a qkv projection viewed; else as in `short_attention`.
        softmax_scale: positive; default D**-0.5.
        added_bias: [3 * H * D], the bias that was already added to qkv (from its detached value), or None. It is not
            added again; it receives its gradient, the sum of dqkv over batch and tokens, from the backward kernel,
            in place of another pass over dqkv.
    Returns:
        [B, N, H * D].
    Raises:
        ValueError: shapes, dtypes or devices do not match.
        RuntimeError: backward through the kernels with create_graph=True.

    >>> qkv = torch.randn(2, 50, 3, 4, 32, requires_grad=True)
    >>> out = short_attention_qkvpacked(qkv)
    >>> out.sum().backward()
    >>> out.shape, qkv.grad.shape
    (torch.Size([2, 50, 128]), torch.Size([2, 50, 3, 4, 32]))
    """
    _check_packed(qkv, added_bias)
    qkv = qkv.to(compute_dtype(qkv))
    q, k, v = qkv.unbind(2)
    if short_attention_unsupported_reason(q, k, v, softmax_scale) is None and not needs_composition():
        return _short_attention_qkvpacked_fwd(qkv, added_bias, _scale(qkv, softmax_scale))[0]
    if added_bias is not None:  # adds zero and takes the gradient
        qkv = qkv + (added_bias - added_bias.detach()).view(qkv.shape[2:]).to(qkv.dtype)
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2).flatten(2)


def short_attention_unsupported_reason(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None
) -> str | None:
    """Why the kernels of `short_attention` do not take q [B, N, H, D], k and v [B, M, H, D], or None where they do.

    >>> q = torch.randn(1, 10, 1, 40)
    >>> short_attention_unsupported_reason(q, q, q)
    'head dim must be 32, 48 or 64, got 40'
    """
    if softmax_scale is not None and not softmax_scale > 0:
        return f"softmax_scale must be positive, got {softmax_scale}"
    return unsupported_shape_reason(q.device, q.dtype, q.shape[1], k.shape[1], q.shape[3])


def unsupported_shape_reason(
    device: torch.device, dtype: torch.dtype, num_queries: int, num_keys: int, head_dim: int
) -> str | None:
    """`short_attention_unsupported_reason` for the sizes, dtype and device that it depends on, without tensors."""
    if dtype not in (torch.bfloat16, torch.float16) and (device.type, dtype) != ("cpu", torch.float32):
        return f"dtype must be bfloat16 or float16{', or float32 on CPU' if device.type == 'cpu' else ''}, got {dtype}"
    if head_dim not in HEAD_DIMS:
        return f"head dim must be 32, 48 or 64, got {head_dim}"
    if num_queries < 1 or num_keys < 1:
        return f"there must be queries and keys, got {num_queries} and {num_keys}"
    if num_keys > MAX_TOKENS:
        return f"at most {MAX_TOKENS} keys, got {num_keys}"
    most = MAX_QUERIES_FEW_KEYS if num_keys <= FEW_KEYS else MAX_TOKENS
    if num_queries > most:
        return f"at most {most} queries for {num_keys} keys, got {num_queries}"
    return _unavailable_reason(device) or _lack_of_smem(device, num_queries, num_keys, head_dim)


def _unavailable_reason(device: torch.device) -> str | None:
    return _extension.missing_kernel_reason("short_attention", device)


def unsupported_device_reason(device: torch.device) -> str | None:
    """Why the kernels take nothing on a CPU or GPU, or less than they take elsewhere, or None."""
    largest = [(MAX_TOKENS, MAX_TOKENS), (MAX_QUERIES_FEW_KEYS, FEW_KEYS)]
    lacks = (_lack_of_smem(device, *lengths, head_dim) for lengths in largest for head_dim in HEAD_DIMS)
    return _unavailable_reason(device) or next(filter(None, lacks), None)


def _lack_of_smem(device: torch.device, num_queries: int, num_keys: int, head_dim: int) -> str | None:
    if device.type != "cuda" or not _extension.has_native():
        return None
    properties = torch.cuda.get_device_properties(device)
    max_smem = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # missing in torch's stub
    if max_smem >= _smem_for_every_shape():  # every GPU known; token counts stay symbolic in torch.compile
        return None
    return lack_of_smem(max_smem, num_queries, num_keys, head_dim)


@assume_constant_result
def _smem_for_every_shape() -> int:
    return importlib.import_module("lgfast._C").SHORT_ATTENTION_SMEM_FOR_EVERY_SHAPE


@assume_constant_result
def lack_of_smem(max_smem: int, num_queries: int, num_keys: int, head_dim: int) -> str | None:
    """Why a GPU that gives a block max_smem bytes of shared memory cannot run the kernels, or None.

    The launch plan of the kernels answers.
    """
    return (
        importlib.import_module("lgfast._C").short_attention_refusal(num_queries, num_keys, head_dim, max_smem) or None
    )


def _scale(q: Tensor, softmax_scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which attention computes x: its own, or autocast's where autocast is on."""
    return torch.get_autocast_dtype(x.device.type) if x.dtype != torch.float64 and is_autocast(x) else x.dtype


def _check(q: Tensor, k: Tensor, v: Tensor, layout: str | None) -> None:
    check_floating("short_attention", q=q, k=k, v=v)
    if layout not in (None, "bnhd", "bhnd"):
        raise ValueError(f'short_attention: layout must be "bnhd" or "bhnd", got {layout!r}')
    heads, other = (1, "bnhd") if layout == "bhnd" else (2, "bhnd")
    shared = (0, heads, 3)
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or any(q.shape[i] != k.shape[i] for i in shared):
        expected = "[B, H, N, D] and k, v [B, H, M, D]" if layout == "bhnd" else "[B, N, H, D] and k, v [B, M, H, D]"
        raise ValueError(
            f"short_attention: q must be {expected}, got {list(q.shape)}, {list(k.shape)} and {list(v.shape)}; "
            f'layout="{other}" takes the other order'
        )
    if q.device != k.device or q.device != v.device:
        raise ValueError(f"short_attention: one device expected, got q {q.device}, k {k.device}, v {v.device}")
    if (q.dtype != k.dtype or q.dtype != v.dtype) and not is_autocast(q):
        raise ValueError(f"short_attention: one dtype expected, got q {q.dtype}, k {k.dtype}, v {v.dtype}; cast them")


def _check_packed(qkv: Tensor, added_bias: Tensor | None) -> None:
    check_floating("short_attention_qkvpacked", qkv=qkv)
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(f"short_attention_qkvpacked: qkv must be [B, N, 3, H, D], got {list(qkv.shape)}")
    if added_bias is None:
        return
    check_floating("short_attention_qkvpacked", added_bias=added_bias)
    num_channels = 3 * qkv.shape[3] * qkv.shape[4]
    if added_bias.shape != (num_channels,) or added_bias.device != qkv.device:
        raise ValueError(
            f"short_attention_qkvpacked: added_bias must be [3 * H * D] = [{num_channels}] on {qkv.device}, "
            f"got {list(added_bias.shape)} on {added_bias.device}"
        )


@torch.library.register_fake("lgfast::short_attention_fwd")
def _(q, k, v, softmax_scale):
    return q.new_empty(q.shape), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)


@torch.library.register_fake("lgfast::short_attention_bwd")
def _(dout, q, k, v, out, lse, softmax_scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@torch.library.register_fake("lgfast::short_attention_qkvpacked_fwd")
def _(qkv, added_bias, softmax_scale):
    batch, num_tokens, _, heads, head_dim = qkv.shape
    lse = qkv.new_empty((batch, heads, num_tokens), dtype=torch.float32)
    return qkv.new_empty((batch, num_tokens, heads * head_dim)), lse


@torch.library.register_fake("lgfast::short_attention_qkvpacked_bwd")
def _(dout, qkv, out, lse, softmax_scale, needs_dbias):
    batch = qkv.shape[0] if needs_dbias else 0
    return qkv.new_empty(qkv.shape), qkv.new_empty((batch, *qkv.shape[2:]), dtype=torch.float32)


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("short_attention has no second derivative; call backward without create_graph=True")


def _setup_context(ctx, inputs, output):
    q, k, v, ctx.softmax_scale = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dout, _):
    _refuse_second_derivative()
    return *torch.ops.lgfast.short_attention_bwd(dout, *ctx.saved_tensors, ctx.softmax_scale), None


def _setup_context_qkvpacked(ctx, inputs, output):
    qkv, added_bias, ctx.softmax_scale = inputs
    ctx.bias_dtype = None if added_bias is None else added_bias.dtype
    ctx.save_for_backward(qkv, *output)
    ctx.mark_non_differentiable(output[1])


def _backward_qkvpacked(ctx, dout, _):
    _refuse_second_derivative()
    needs_dbias = ctx.needs_input_grad[1]
    dqkv, dbias = torch.ops.lgfast.short_attention_qkvpacked_bwd(
        dout, *ctx.saved_tensors, ctx.softmax_scale, needs_dbias
    )
    return dqkv, dbias.sum(0).flatten().to(ctx.bias_dtype) if needs_dbias else None, None


def _vmap_over_batch(op):
    """The rule for torch.vmap: fold its dimension into the batch, the first dimension of every argument and result."""

    def fold(x, dim, size):
        if not isinstance(x, Tensor):
            return x
        x = x.movedim(dim, 0) if dim is not None else x.expand(size, *x.shape)
        return x.flatten(0, 1)

    def rule(info, in_dims, *args):
        size = info.batch_size
        outs = op(*(fold(x, dim, size) for x, dim in zip(args, in_dims, strict=True)))
        return tuple(x.unflatten(0, (size, x.shape[0] // size)) for x in outs), (0,) * len(outs)

    return rule


_qkvpacked_fwd_loop = vmap_loop("short_attention_qkvpacked_fwd")


def _qkvpacked_fwd_over_batch(info, in_dims, qkv, added_bias, softmax_scale):
    if in_dims[1] is not None:  # a bias for each element, each with a gradient of its own
        return _qkvpacked_fwd_loop(info, in_dims, qkv, added_bias, softmax_scale)
    op = _vmap_over_batch(lambda x: torch.ops.lgfast.short_attention_qkvpacked_fwd(x, added_bias, softmax_scale))
    return op(info, in_dims[:1], qkv)


_short_attention_fwd = register_gradient("short_attention_fwd", _backward, _setup_context)
_short_attention_qkvpacked_fwd = register_gradient(
    "short_attention_qkvpacked_fwd", _backward_qkvpacked, _setup_context_qkvpacked
)
torch.library.register_vmap("lgfast::short_attention_fwd", _vmap_over_batch(torch.ops.lgfast.short_attention_fwd))
torch.library.register_vmap("lgfast::short_attention_bwd", _vmap_over_batch(torch.ops.lgfast.short_attention_bwd))
torch.library.register_vmap("lgfast::short_attention_qkvpacked_fwd", _qkvpacked_fwd_over_batch)
torch.library.register_vmap(
    "lgfast::short_attention_qkvpacked_bwd", _vmap_over_batch(torch.ops.lgfast.short_attention_qkvpacked_bwd)
)


def _reference_bwd(dout, q, k, v, out, lse, softmax_scale):
    grads = reference.short_attention_grads(dout, q, k, v, out, lse, softmax_scale)
    return tuple(grad.to(q.dtype).contiguous() for grad in grads)


def _reference_qkvpacked_fwd(qkv, added_bias, softmax_scale):
    out, lse = reference.short_attention(*qkv.unbind(2), softmax_scale)
    return out.flatten(2), lse


def _reference_qkvpacked_bwd(dout, qkv, out, lse, softmax_scale, needs_dbias):
    heads_shape = qkv.shape[3:]
    dout, out = dout.unflatten(2, heads_shape), out.unflatten(2, heads_shape)
    grad = torch.stack(reference.short_attention_grads(dout, *qkv.unbind(2), out, lse, softmax_scale), dim=2)
    dbias = grad.sum(1) if needs_dbias else grad.new_empty((0, *qkv.shape[2:]))
    return grad.to(qkv.dtype), dbias.float()


_extension.register_reference("short_attention_fwd", reference.short_attention, FIRST_CAPABILITY)
_extension.register_reference("short_attention_bwd", _reference_bwd, FIRST_CAPABILITY)
_extension.register_reference("short_attention_qkvpacked_fwd", _reference_qkvpacked_fwd, FIRST_CAPABILITY)
_extension.register_reference("short_attention_qkvpacked_bwd", _reference_qkvpacked_bwd, FIRST_CAPABILITY)
