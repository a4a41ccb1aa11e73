"""Small models for tests, and what they compute."""

import copy

import timm
import torch

from lgfast.models import create_model
from lgfast.models.cvt import ConvolutionalVisionTransformer
from tests.rounding import truth

SHALLOW = {  # models of the paper and of timm with fewer blocks, of every kind that they have
    "deit_tiny_patch16_224": {"depth": 3},
    "deit_tiny_distilled_patch16_224": {"depth": 3},
    "vit_small_patch16_224": {"depth": 3},
    "pit_ti_224": {"depth": (1, 1, 1)},
    "pvt_tiny": {"depths": (1, 1, 1, 2)},
    "pvt_v2_b0": {"depths": (1, 1, 1, 2)},
    "convit_tiny": {"depth": 4, "local_up_to_layer": 2},
    "t2t_vit_7": {"depth": 3},
    "t2t_vit_14": {"depth": 3},
    "cvt_13": {"depths": (1, 1, 2)},
}

FOUR_STAGES = {  # 4 keys in each stage but the last
    "num_classes": 5, "depths": (1, 1, 1, 1), "embed_dims": (32, 64, 64, 96), "num_heads": (1, 2, 2, 3),
    "mlp_ratios": (2, 2, 2, 2), "sr_ratios": (4, 2, 1, 1),
}  # fmt: skip


def vit(**changes):
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.models.VisionTransformer(**{**options, **changes})


def pvt():
    return create_model("pvt_tiny", image_size=32, drop_path_rate=0.0, **FOUR_STAGES)


def pvt_v2():
    return timm.create_model("pvt_v2_b0", drop_path_rate=0.0, **FOUR_STAGES)


def cvt():
    options = {"depths": (1, 1, 1), "embed_dims": (32, 32, 64), "num_heads": (1, 1, 2)}
    return create_model("cvt_13", num_classes=5, image_size=64, drop_path_rate=0.0, **options)


def images(model):
    side = 64 if isinstance(model, timm.models.ConVit | ConvolutionalVisionTransformer) else 32
    return torch.randn(2, 3, side, side)


def output_and_gradients(model, x):
    out = model(x)
    model.zero_grad()
    (out.float() * torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)).sum().backward()
    return {"out": out.detach(), **{name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}}


def true_output_and_gradients(model, x):
    """The Truth of each, of a model and images in the dtype under test."""
    exact = copy.deepcopy(model).double()
    return truth(lambda: output_and_gradients(exact, x.double()), x.dtype, pytorch_norms=True)
