"""Puts lgfast's operations into timm models, in place and reversibly."""

from lgfast.fusion.attention import fuse, register_fused, unfuse
from lgfast.fusion.class_swap import FuseReport
from lgfast.fusion.layers import fuse_layers, unfuse_layers

__all__ = ["FuseReport", "fuse", "fuse_layers", "register_fused", "unfuse", "unfuse_layers"]
