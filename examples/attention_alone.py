"""Use lgfast's attention on its own in place of PyTorch's: the same numbers, forward and backward.

python examples/attention_alone.py
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

from lgfast.ops import short_attention, short_attention_unsupported_reason

device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.bfloat16 if device == "cuda" else torch.float32
torch.manual_seed(0)
# Shapes of a DeiT-Ti at 224 pixels: 8 images, 197 tokens, 3 heads, 64 channels a head.
q, k, v = (torch.randn(8, 197, 3, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

print("kernel:", short_attention_unsupported_reason(q, k, v) or "lgfast's own")


def torch_attention(q, k, v):
    """Run PyTorch's attention, which takes [batch, heads, tokens, head dim]."""
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def output_and_gradient(attention):
    out = attention(q, k, v)
    (gradient,) = torch.autograd.grad(out.square().sum(), q)
    return out, gradient


ours, theirs = output_and_gradient(short_attention), output_and_gradient(torch_attention)
for name, one, other in zip(("output", "gradient of q"), ours, theirs, strict=True):
    difference = (one - other).abs().max() / other.abs().max()
    print(f"{name} {tuple(one.shape)}: largest difference {difference.item():.1e} of the largest value")
