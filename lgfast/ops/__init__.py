"""Fused operations, each usable alone: `from lgfast.ops import feature_mse`."""

from lgfast.ops.feature_mse import feature_mse

__all__ = ["feature_mse"]
