"""Fused operations, each usable alone: `from lgfast.ops import feature_mse`.

Inputs that the kernels of an operation do not take run its composition in PyTorch; why, says a function of its name
and `_unsupported_reason`.
"""

from lgfast import _extension
from lgfast.ops.add_layer_norm import add_layer_norm, add_layer_norm_unsupported_reason
from lgfast.ops.augment import augment, augment_plan, eval_plan
from lgfast.ops.bias_gelu import bias_gelu, bias_gelu_unsupported_reason
from lgfast.ops.feature_mse import feature_mse
from lgfast.ops.flat_adamw import flat_adamw
from lgfast.ops.mix import mix_images, mix_labels, mix_plan
from lgfast.ops.short_attention import (
    short_attention,
    short_attention_qkvpacked,
    short_attention_unsupported_reason,
    unsupported_reason,
)
from lgfast.spec.augment import AugmentSpec

__all__ = [
    "AugmentSpec",
    "add_layer_norm",
    "add_layer_norm_unsupported_reason",
    "augment",
    "augment_plan",
    "bias_gelu",
    "bias_gelu_unsupported_reason",
    "eval_plan",
    "feature_mse",
    "flat_adamw",
    "mix_images",
    "mix_labels",
    "mix_plan",
    "short_attention",
    "short_attention_qkvpacked",
    "short_attention_unsupported_reason",
    "unsupported_reason",
]

_extension.serve_visible_gpus()
