"""Each op in plain PyTorch: the truth for tests, the kernels of a pure-Python install, the benchmark baseline."""

from lgfast.ops.reference.add_layer_norm import add_layer_norm
from lgfast.ops.reference.bias_gelu import bias_gelu
from lgfast.ops.reference.feature_mse import feature_mse, feature_mse_grads
from lgfast.ops.reference.flat_adamw import flat_adamw
from lgfast.ops.reference.short_attention import short_attention, short_attention_grads
from lgfast.ops.reference.vit_block import vit_block

__all__ = [
    "add_layer_norm",
    "bias_gelu",
    "feature_mse",
    "feature_mse_grads",
    "flat_adamw",
    "short_attention",
    "short_attention_grads",
    "vit_block",
]
