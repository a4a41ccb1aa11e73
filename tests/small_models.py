"""Small models for the tests of fusion, and what they compute."""

import timm
import torch


def vit(**changes):
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.models.VisionTransformer(**{**options, **changes})


def images(model):
    side = 32 if isinstance(model, timm.models.VisionTransformer) else 64
    return torch.randn(2, 3, side, side)


def output_and_gradients(model, x):
    out = model(x)
    model.zero_grad()
    (out.float() * torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)).sum().backward()
    return {"out": out.detach(), **{name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}}
