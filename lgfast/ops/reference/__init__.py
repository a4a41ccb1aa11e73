"""Each op in plain PyTorch: the truth for tests, the kernels of a pure-Python install, the benchmark baseline."""

from lgfast.ops.reference.feature_mse import feature_mse, feature_mse_grads

__all__ = ["feature_mse", "feature_mse_grads"]
