"""`create_model`: any timm model by name, with the paper's fixes for the models of the paper."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import timm
from timm.models import get_pretrained_cfg, is_model, list_models
from torch import nn

from lgfast.models import cvt, pvt, t2t  # noqa: F401  registered in timm by their import
from lgfast.models.convit import use_fast_attention
from lgfast.models.deit import init_deit
from lgfast.models.layers import set_layer_norm_eps
from lgfast.models.resnet import init_resnet
from lgfast.runtime.suggestions import did_you_mean, nearest


def leave_as_is(model: nn.Module) -> None:
    """No fix: the constructor already gives the paper's model."""


@dataclass(frozen=True)
class PaperModel:
    """How the paper's network differs from what its registered constructor builds.

    Attributes:
        fix: changes the built model in place (initialisation, epsilons).
        drop_path_scale: the constructor's drop-path rate for each unit of the paper's; 0 where it has none.
        kwargs: constructor arguments that differ from timm's defaults.
    """

    fix: Callable[[nn.Module], None] = leave_as_is
    drop_path_scale: float = 1.0
    kwargs: dict = field(default_factory=dict)


CIFAR_RESNETS = tuple(f"cifar_resnet{depth}" for depth in (8, 20, 32, 44, 56, 110))
PAPER_MODELS = {
    "deit_tiny_patch16_224": PaperModel(fix=init_deit),
    "deit_tiny_distilled_patch16_224": PaperModel(fix=init_deit),
    "pit_ti_224": PaperModel(drop_path_scale=11 / 12),  # block i of 12 drops at rate * i / 12, timm at rate * i / 11
    "pvt_v2_b0": PaperModel(fix=partial(set_layer_norm_eps, eps=1e-6)),
    "convit_tiny": PaperModel(fix=use_fast_attention),
    "resnet18": PaperModel(fix=init_resnet, drop_path_scale=0, kwargs={"zero_init_last": False}),
    **{name: PaperModel(drop_path_scale=0) for name in CIFAR_RESNETS},
}


def create_model(
    name: str, num_classes: int, image_size: int = 224, drop_path_rate: float = 0.1, **kwargs
) -> nn.Module:
    """Build an untrained model; those of the paper are initialised exactly as in the paper's code.

    Args:
        name: any name of timm's registry, which holds lgfast's own models too.
        num_classes: size of the classifier.
        image_size: side of the square input; models without position embeddings take any size.
        drop_path_rate: the largest stochastic-depth rate; the paper's CNNs, and models without it, have none.
        kwargs: passed to the constructor (`patch_size`, `embed_dim`, `depth`, `num_heads`, ...).
    Raises:
        ValueError: unknown name (with near ones), or an argument the model does not have or take.

    >>> create_model("t2t_vit_7", num_classes=10, image_size=64).num_classes
    10
    """
    if not is_model(name):
        raise ValueError(unknown_model(name))
    paper = PAPER_MODELS.get(name, PaperModel())
    args = {**paper.kwargs, "num_classes": num_classes, **kwargs}
    cfg = get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size:
        args["img_size"] = image_size
    model = build(name, args, drop_path_rate * paper.drop_path_scale)
    paper.fix(model)
    return model


def build(name: str, args: dict, drop_path_rate: float) -> nn.Module:
    """timm's constructor, without `drop_path_rate` for the models that have no such argument."""
    if drop_path_rate > 0:
        try:
            return timm.create_model(name, drop_path_rate=drop_path_rate, **args)
        except Exception as error:  # an argument the model lacks, or a value it refuses
            if "drop_path_rate" not in str(error):
                raise ValueError(refused(name, error)) from error
    try:
        return timm.create_model(name, **args)
    except Exception as error:
        raise ValueError(refused(name, error)) from error


def refused(name: str, error: Exception) -> str:
    """One line about any error that a constructor raised."""
    return f"create_model: {name}: {' '.join(str(error).split()) or type(error).__name__}"


def unknown_model(name: str) -> str:
    """The error text for a name that is not registered."""
    hint = did_you_mean(nearest(name, list_models()), "timm.list_models() lists the names")
    return f"create_model: name must be a registered model, got {name!r}; {hint}"
