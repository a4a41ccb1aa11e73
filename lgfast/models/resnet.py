"""CIFAR ResNet-(6n+2), the locality-guidance teacher, and the paper's initialisation of ResNet-18."""

from functools import partial

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

from lgfast.models.layers import device_and_dtype

STAGE_NAMES = ("layer1", "layer2", "layer3")


def init_conv(module: nn.Module) -> None:
    """Convolutions: normal with std sqrt(2 / (k*k*out)). BatchNorm keeps 1 and 0, the last one of a block too."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def init_classifier(fc: nn.Module) -> None:
    """Last linear layer: weight N(0, 0.01), bias 0."""
    if isinstance(fc, nn.Linear):
        nn.init.normal_(fc.weight, std=0.01)
        nn.init.zeros_(fc.bias)


def init_resnet(model: nn.Module) -> None:
    """The paper's initialisation, for any ResNet whose classifier is named `fc`."""
    model.apply(init_conv)
    init_classifier(model.fc)


class CifarResNet(nn.Module):
    """ResNet for small images: a 3x3 stem, three stages of basic blocks, widths 16/32/64, strides 1/2/2.

    Shortcuts that change width or stride are a strided 1x1 convolution with BatchNorm ("option B").
    Modules are named as in timm's ResNet; `forward_intermediates` gives the three stage outputs, after
    the last ReLU of each.

    Args:
        depth: number of weighted layers, 6n+2 for n blocks a stage.
        widths: channels of the three stages.
    Source: He et al., CVPR 2016, section 4.2.
    """

    def __init__(
        self,
        depth: int = 56,
        num_classes: int = 1000,
        in_chans: int = 3,
        widths: tuple[int, int, int] = (16, 32, 64),
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"CifarResNet: depth must be 6n+2 with n >= 1 (8, 20, 32, 44, 56, 110), got {depth}")
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.grad_checkpointing = False
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(widths[0], **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info = []
        num_blocks, in_channels = (depth - 2) // 6, widths[0]
        for i, (name, width) in enumerate(zip(STAGE_NAMES, widths, strict=True)):
            self.add_module(name, make_stage(in_channels, width, num_blocks, stride=1 if i == 0 else 2, **dd))
            self.feature_info.append({"num_chs": width, "reduction": 2**i, "module": name})
            in_channels = width
        self.num_features = self.head_hidden_size = widths[-1]
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        init_resnet(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        dd = device_and_dtype(self)
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.fc = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        init_classifier(self.fc)

    def forward_stages(self, x: Tensor, num_stages: int = 3) -> list[Tensor]:
        """Outputs of the first `num_stages` stages, channels last in memory: what convolutions compute fastest in."""
        x = x.contiguous(memory_format=torch.channels_last)
        x, maps = self.act1(self.bn1(self.conv1(x))), []
        for name in STAGE_NAMES[:num_stages]:
            stage = getattr(self, name)
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        return self.forward_stages(x)[-1]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Stage outputs, as timm's models give them; `norm` has nothing to apply here."""
        if output_fmt != "NCHW":
            raise ValueError(f"CifarResNet: output_fmt must be 'NCHW', got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(STAGE_NAMES), indices)
        maps = self.forward_stages(x, max_index + 1 if stop_early else len(STAGE_NAMES))
        intermediates = [maps[i] for i in sorted(take_indices)]
        return intermediates if intermediates_only else (maps[-1], intermediates)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def make_stage(in_channels: int, width: int, num_blocks: int, stride: int, **dd) -> nn.Sequential:
    """Basic blocks of one width; the first one carries the stride and, where shapes change, the projection."""
    changes_shape = stride != 1 or in_channels != width
    downsample = downsample_conv(in_channels, width, kernel_size=1, stride=stride, **dd) if changes_shape else None
    blocks = [BasicBlock(in_channels, width, stride, downsample, **dd)]
    blocks += [BasicBlock(width, width, **dd) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


def _create_cifar_resnet(variant: str, pretrained: bool = False, **kwargs) -> CifarResNet:
    feature_cfg = {"out_indices": kwargs.pop("out_indices", (0, 1, 2)), "feature_cls": "getter"}
    return build_model_with_cfg(CifarResNet, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


_cfg: partial[dict] = partial(
    dict,
    num_classes=1000,
    input_size=(3, 32, 32),
    pool_size=(8, 8),
    crop_pct=1.0,
    interpolation="bicubic",
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    first_conv="conv1",
    classifier="fc",
)

default_cfgs = generate_default_cfgs({f"cifar_resnet{depth}": _cfg() for depth in (8, 20, 32, 44, 56, 110)})


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create_cifar_resnet("cifar_resnet8", pretrained, **{"depth": 8, **kwargs})


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create_cifar_resnet("cifar_resnet20", pretrained, **{"depth": 20, **kwargs})


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create_cifar_resnet("cifar_resnet32", pretrained, **{"depth": 32, **kwargs})


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create_cifar_resnet("cifar_resnet44", pretrained, **{"depth": 44, **kwargs})


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create_cifar_resnet("cifar_resnet56", pretrained, **{"depth": 56, **kwargs})


@register_model
def cifar_resnet110(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create_cifar_resnet("cifar_resnet110", pretrained, **{"depth": 110, **kwargs})
