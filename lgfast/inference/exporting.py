"""Write a trained network to files for other programs."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from lgfast.fusion import unfuse, unfuse_layers
from lgfast.inference.classifier import (
    DESCRIPTION,
    DIGEST,
    DIGEST_PLACE,
    METADATA,
    Classifier,
    describe,
    load_onnx,
    onnx_digest,
)
from lgfast.records.checkpoint import save_weights, weights_digest
from lgfast.records.files import atomic_path, write_text
from lgfast.spec.augment import AugmentSpec

ONNX_TOLERANCE = 1e-4  # the largest difference of logits, relative to the largest logit
OPSET = 18


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the network in eval mode, float32, on the CPU, with only PyTorch's operations."""
    model = copy.deepcopy(model).cpu().float().eval()
    unfuse(model)
    unfuse_layers(model)
    return model


def example(spec: AugmentSpec) -> Tensor:
    """Return two images, so that the exporters see a batch whose size may change."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, spec.channels, spec.image_size, spec.image_size, generator=generator)


def export_safetensors(model: nn.Module, classifier: Classifier, path: Path) -> None:
    """Write weights under timm's names, with the configuration and the classes in the header."""
    save_weights(path, plain_copy(model).state_dict(), json.loads(describe(classifier)))


def export_torch(model: nn.Module, classifier: Classifier, path: Path) -> None:
    """Write a torch.export program (.pt2) from normalised images [B, C, S, S] to logits [B, K], for any B."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(
        plain_copy(model), (example(classifier.config.augment),), dynamic_shapes=({0: batch},)
    )
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        digest = weights_digest(program.state_dict, {})
        torch.export.save(program, file, extra_files={DESCRIPTION: describe(classifier), DIGEST: digest})


def export_onnx(model: nn.Module, classifier: Classifier, path: Path) -> None:
    """Write an ONNX file of the same function, and check that onnxruntime's logits differ by at most 1e-4 of the
    largest.

    Raises:
        ValueError: onnx, onnxscript or onnxruntime is missing, or the file computes something else.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--format onnx: {error.name} is missing; pip install 'lgfast[export]'") from error
    plain, images = plain_copy(model), example(classifier.config.augment)
    with atomic_path(path) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about its internals
            program = torch.onnx.export(
                plain, (images,), dynamo=True, opset_version=OPSET, input_names=["images"], output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},), verbose=False,
            )  # fmt: skip
        assert program is not None  # it is None only with dynamo=False
        proto = program.model_proto
        for key, value in ((METADATA, describe(classifier)), (DIGEST, DIGEST_PLACE)):
            entry = proto.metadata_props.add()
            entry.key, entry.value = key, value
        content = proto.SerializeToString()
        temporary.write_bytes(content.replace(DIGEST_PLACE.encode(), onnx_digest(content).encode()))
        check_onnx(plain, temporary, images)


@torch.no_grad()
def check_onnx(model: nn.Module, path: Path, images: Tensor) -> None:
    """Compare onnxruntime with PyTorch, on a batch of the exported size and on a larger one."""
    session = load_onnx(path)
    for batch in (images, torch.cat((images, -images, 0.5 * images))):
        expected, found = model(batch), session.logits(batch)
        error = (found - expected).abs().max().item()
        if not error <= ONNX_TOLERANCE * max(1.0, expected.abs().max().item()):
            raise ValueError(
                f"--format onnx: onnxruntime's logits differ from PyTorch's by {error:.2g}; nothing is kept"
            )


def export_hub_folder(model: nn.Module, classifier: Classifier, path: Path, card: str) -> None:
    """Write a folder in the Hugging Face hub's and timm's form: model.safetensors, config.json, README.md.

    `timm.create_model("local-dir:FOLDER")` loads it.
    """
    config, spec = classifier.config, classifier.config.augment
    overrides = config.model.shape_overrides() | ({} if spec.channels == 3 else {"in_chans": spec.channels})
    described = {
        "architecture": config.model.name,
        "num_classes": len(classifier.class_names),
        "label_names": list(classifier.class_names),
        "model_args": overrides,
        "pretrained_cfg": {
            "num_classes": len(classifier.class_names),
            "input_size": [spec.channels, spec.image_size, spec.image_size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
    }
    path.mkdir(parents=True, exist_ok=True)
    export_safetensors(model, classifier, path / "model.safetensors")
    for name, text in (("config.json", json.dumps(described, indent=2) + "\n"), ("README.md", card)):
        write_text(path / name, text)
