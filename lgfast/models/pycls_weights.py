"""Weights of the paper's code: its `.pyth` checkpoints, names mapped to those of lgfast's models."""

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from lgfast.models.factory import create_model
from lgfast.models.taps import architecture

Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]
Which = Literal["best", "model", "ema"]


def shifted(template: str, by: int):
    """A replacement that inserts group 1 as a number moved by `by`."""
    return lambda match: template.format(int(match[1]) + by, *match.groups()[1:])


LAYER: Rules = ((r"\.qkv_transform\.", ".qkv."), (r"\.attn\.projection\.", ".attn.proj."))
STAGED = (
    (r"^block(\d+)\.", shifted("stages.{}.blocks.", -1)),
    (r"^norm(\d+)\.", shifted("stages.{}.norm.", -1)),
)
RESNET = (
    (r"^stem\.conv\.", "conv1."),
    (r"^stem\.bn\.", "bn1."),
    (r"^head\.fc\.", "fc."),
    (r"^s(\d+)\.b(\d+)\.", lambda match: f"layer{match[1]}.{int(match[2]) - 1}."),
    (r"\.f\.a\.", ".conv1."),
    (r"\.f\.a_bn\.", ".bn1."),
    (r"\.f\.b\.", ".conv2."),
    (r"\.f\.b_bn\.", ".bn2."),
    (r"\.proj\.", ".downsample.0."),
    (r"^(layer\d+\.\d+)\.bn\.", r"\1.downsample.1."),
)
# architecture -> rules, applied in order to every name of the checkpoint
NAME_RULES: dict[str, Rules] = {
    "deit_tiny_patch16_224": ((r"^layers\.", "blocks."), (r"^patch_embed\.projection\.", "patch_embed.proj."), *LAYER),
    "t2t_vit_7": (
        (r"^t2t_module\.attention\.(\d+)\.(?:attn\.)?", shifted("patch_embed.attention{}.", 1)),
        (r"^t2t_module\.projection\.", "patch_embed.proj."),
        (r"^(patch_embed\.attention\d)\.qkv_transform\.", r"\1.kqv."),
        (r"^(patch_embed\.attention\d)\.projection\.", r"\1.proj."),
        (r"^layers\.", "blocks."),
        *LAYER,
    ),
    "pit_ti_224": ((r"^pools\.(\d+)\.", shifted("transformers.{}.pool.", 1)), *LAYER),
    "pvt_tiny": (
        (r"^patch_embed(\d+)\.", shifted("stages.{}.patch_embed.", -1)),
        (r"^pos_embed(\d+)$", shifted("stages.{}.pos_embed", -1)),
        *STAGED,
    ),
    "pvt_v2_b0": (
        (r"^patch_embed1\.", "patch_embed."),
        (r"^patch_embed(\d+)\.", shifted("stages.{}.downsample.", -1)),
        (r"\.dwconv\.dwconv\.", ".dwconv."),
        *STAGED,
    ),
    "convit_tiny": (),
    "cvt_13": (
        (r"^stage\d+\.cls_token$", "cls_token"),
        (r"^stage(\d+)\.", r"stages.\1."),
        (r"\.conv_proj_([qkv])\.", r".conv_\1."),
        (r"\.proj_([qkv])\.", r".\1."),
    ),
    "resnet18": RESNET,
}
NAME_RULES["t2t_vit_14"] = NAME_RULES["t2t_vit_7"]
# a name that only this model has, the more telling ones first
SIGNATURES = (
    ("stage2.cls_token", "cvt_13"),
    ("pools.0.conv.weight", "pit_ti_224"),
    ("pos_embed4", "pvt_tiny"),
    ("patch_embed4.proj.weight", "pvt_v2_b0"),
    ("blocks.0.attn.gating_param", "convit_tiny"),
    ("layers.0.attn.qkv_transform.weight", "deit_tiny_patch16_224"),
)


@dataclass(frozen=True)
class PyclsCheckpoint:
    """The content of a `.pyth` file of the paper's code, without its optimizer.

    Attributes:
        state: weights of the student or CNN, by the names of the paper's code.
        weights: which they are: "model", or "ema", their moving average.
        config: its configuration, as YAML text.
        test_err, ema_err: top-1 error in percent of either on the test set, of its best epoch in `model.pyth`; 100
            where it was not tested.
    """

    state: Mapping[str, Tensor]
    weights: Literal["model", "ema"]
    config: str
    test_err: float
    ema_err: float

    @property
    def num_classes(self) -> int:
        """Rows of the classifier."""
        for name in ("head.weight", "head.fc.weight"):
            if name in self.state:
                return self.state[name].shape[0]
        raise ValueError(f"pycls checkpoint: no classifier (head.weight or head.fc.weight) in {self.weights}_state")


def read_pycls(path: str | Path, which: Which = "best") -> PyclsCheckpoint:
    """Read a checkpoint without running code from it.

    Args:
        which: "model", the trained weights; "ema", their moving average; "best", those that the test mode of the
            paper's code takes: the average where its error is the smaller one.
    Raises:
        OSError: no such file, or not to be read.
        ValueError: not a checkpoint of the paper's code, or one without the weights asked for.
    """
    with open(path, "rb"):  # else an OSError; torch raises some where the content is damaged, too
        pass
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a readable PyTorch checkpoint ({reason})") from error
    if not isinstance(content, Mapping) or "model_state" not in content:
        raise ValueError(f"{path}: expected a checkpoint of the paper's code, a dict with the key 'model_state'")
    test_err, ema_err = (error_rate(content, name, path) for name in ("test_err", "ema_err"))
    if which == "best":
        which = "ema" if "ema_state" in content and ema_err < test_err else "model"
    if which == "ema" and content.get("ema_state") is None:
        raise ValueError(f"{path}: holds no moving average (ema_state); take its trained weights (--weights model)")
    config = content.get("cfg", "")
    if not isinstance(config, str):
        raise ValueError(f"{path}: cfg: expected a configuration as text, got {type(config).__name__}")
    return PyclsCheckpoint(dense_state(content, f"{which}_state", path), which, config, test_err, ema_err)


def check_archive(path: str | Path) -> None:
    """Raise a ValueError where a part of the file does not have its checksum; torch does not look at them."""
    if zipfile.is_zipfile(path):  # torch before 1.6 wrote no archives
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not match its checksum")


def error_rate(content: Mapping[str, Any], name: str, path: str | Path) -> float:
    """An error of the file in percent; 100, as in the paper's code, where it has none."""
    value = content.get(name, 100.0)
    if not isinstance(value, (int, float)):
        raise ValueError(f"{path}: {name}: expected a number, got {type(value).__name__}")
    return float(value)


def dense_state(content: Mapping[str, Any], name: str, path: str | Path) -> Mapping[str, Tensor]:
    """A state dict of the file, of plain tensors alone."""
    state = content.get(name)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: {name}: expected a state dict, got {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name}: expected tensors by name, got {key!r}: {type(value).__name__}")
        if value.is_quantized or value.layout != torch.strided:
            raise ValueError(f"{path}: {name}: {key} is quantized or sparse; lgfast reads plain weights")
    return state


def convert_pycls(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Rename the weights of the paper's code to those of lgfast's model `name`."""
    rules = RESNET if name.startswith("cifar_resnet") else NAME_RULES.get(name)
    if rules is None:
        known = ", ".join((*NAME_RULES, "cifar_resnet*"))
        raise ValueError(f"convert_pycls: the paper's code has no {name}; its models are {known}")
    return {rename(key, rules): value for key, value in state.items()}


def rename(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def pycls_model_name(state: Mapping[str, Tensor]) -> str:
    """Which of lgfast's models a state of the paper's code belongs to, told by its names and depth."""
    if "stem.conv.weight" in state:
        if state["stem.conv.weight"].shape[-1] == 7:
            return "resnet18"
        return f"cifar_resnet{6 * count(r's1[.]b[0-9]+[.]f[.]a[.]weight', state) + 2}"
    if "t2t_module.projection.weight" in state:
        return f"t2t_vit_{count(r'layers[.][0-9]+[.]norm1[.]weight', state)}"
    for key, name in SIGNATURES:
        if key in state:
            return name
    raise ValueError("pycls checkpoint: model_state is of no model that lgfast knows")


def count(pattern: str, state: Mapping[str, Tensor]) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in state)


def pycls_image_size(config: str, name: str) -> int:
    """Input size stated in the configuration of the paper's code, its default where that is silent.

    A file without any configuration is taken for the paper's own: 32 pixels for a CIFAR ResNet.
    """
    if not config:
        return 32 if name.startswith("cifar_resnet") else 224
    try:
        size = (yaml.safe_load(config).get("MODEL") or {}).get("IMG_SIZE", 224)
    except (yaml.YAMLError, AttributeError, RecursionError):
        raise ValueError("pycls checkpoint: cfg is no configuration of the paper's code") from None
    if type(size) is not int or size < 1:
        raise ValueError(f"pycls checkpoint: MODEL.IMG_SIZE: expected a size in pixels, got {size!r}")
    return size


def model_from_pycls(path: str | Path, which: Which = "best") -> tuple[nn.Module, PyclsCheckpoint]:
    """Build the network of a checkpoint of the paper's code and load it, ready to evaluate; `which` as there."""
    checkpoint = read_pycls(path, which)
    try:
        name = pycls_model_name(checkpoint.state)
        model = create_model(name, checkpoint.num_classes, pycls_image_size(checkpoint.config, name))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    load_state(model, checkpoint, path)
    return model.eval(), checkpoint


def load_pycls(model: nn.Module, path: str | Path, which: Which = "best") -> PyclsCheckpoint:
    """Load a checkpoint of the paper's code into the same network built by `create_model`.

    Args:
        model: one of the paper's models; its class count and image size must be the checkpoint's.
        path: a `.pyth` file. Guided checkpoints hold the student's weights only.
        which: of the weights in the file, as in `read_pycls`.
    Returns:
        The checkpoint, with its configuration and test error.
    Raises:
        ValueError: not such a checkpoint, or one of another network; names what differs. The model is unchanged.
    """
    checkpoint = read_pycls(path, which)
    load_state(model, checkpoint, path)
    return checkpoint


def load_state(model: nn.Module, checkpoint: PyclsCheckpoint, path: str | Path) -> None:
    state = convert_pycls(checkpoint.state, architecture(model))
    differences = compare(model.state_dict(), state)
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(f"{path}: does not fit {architecture(model)}: {'; '.join(differences[:3])}{more}")
    model.load_state_dict(state)


def compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Why `state` does not fit the model: a phrase for each name, wrong shapes first."""
    shapes = [
        f"{key} is {list(state[key].shape)}, expected {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    missing = [f"{key} is missing" for key in expected if key not in state]
    unknown = [f"{key} is unknown" for key in state if key not in expected]
    return shapes + missing + unknown
