"""Fused operations, each usable alone: `from lgfast.ops import feature_mse`.

An operation runs its composition in PyTorch on inputs that its kernels do not take. The function of its name with
`_unsupported_reason` at the end says why.
"""

import warnings
from typing import Any

from lgfast import _extension
from lgfast.ops.add_layer_norm import add_layer_norm, add_layer_norm_unsupported_reason
from lgfast.ops.augment import augment, augment_plan, eval_plan
from lgfast.ops.bias_gelu import bias_gelu, bias_gelu_unsupported_reason
from lgfast.ops.feature_mse import feature_mse, weighted_feature_mse
from lgfast.ops.flat_adamw import flat_adamw
from lgfast.ops.mix import mix_images, mix_labels, mix_plan
from lgfast.ops.short_attention import (
    short_attention,
    short_attention_qkvpacked,
    short_attention_unsupported_reason,
)
from lgfast.ops.unit_gradient import unit_gradient
from lgfast.ops.vit_block import BlockParameters, vit_block, vit_block_unsupported_reason
from lgfast.spec.augment import AugmentSpec

__all__ = [
    "AugmentSpec",
    "BlockParameters",
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
    "unit_gradient",
    "vit_block",
    "vit_block_unsupported_reason",
    "weighted_feature_mse",
]

_RENAMED = {"unsupported_reason": "short_attention_unsupported_reason"}  # names of 0.1, until 0.2

_extension.serve_visible_gpus()


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module 'lgfast.ops' has no attribute {name!r}")
    warnings.warn(f"lgfast.ops.{name} is now {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return globals()[_RENAMED[name]]
