"""The CIFAR ResNet is the paper's teacher, and a timm model like any other."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from lgfast.models import create_model


def test_counts_of_resnet56():
    model = create_model("cifar_resnet56", num_classes=100, image_size=32)
    assert sum(p.numel() for p in model.parameters()) == 861_620
    assert sum(b.numel() for b in model.buffers()) == 4_313
    assert len(model.state_dict()) == 344
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 57
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 55


@pytest.mark.parametrize(("depth", "num_convs"), [(8, 9), (20, 21), (32, 33), (44, 45), (110, 111)])
def test_depth_counts_layers_and_two_projections(depth, num_convs):
    model = create_model(f"cifar_resnet{depth}", num_classes=10, image_size=32)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == num_convs


@pytest.mark.parametrize("depth", [2, 9, 55])
def test_rejects_other_depths(depth):
    with pytest.raises(ValueError, match=f"depth must be 6n\\+2 .* got {depth}"):
        create_model("cifar_resnet8", num_classes=10, image_size=32, depth=depth)


@pytest.mark.parametrize("name", ["cifar_resnet56", "resnet18"])
def test_initialisation(name):
    model = create_model(name, num_classes=100, image_size=32)
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            spread = 5 / math.sqrt(2 * module.weight.numel())  # five standard errors of a sample's std
            assert module.weight.std().item() == pytest.approx(std, rel=spread), key
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1) and torch.all(module.bias == 0), key
            assert (module.eps, module.momentum) == (1e-5, 0.1)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert torch.all(model.fc.bias == 0)


def batch_norm(x, state, prefix):
    """Evaluation-mode batch norm written out."""
    mean, var = (state[f"{prefix}.running_{s}"].view(1, -1, 1, 1) for s in ("mean", "var"))
    weight, bias = (state[f"{prefix}.{s}"].view(1, -1, 1, 1) for s in ("weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def composed_resnet(x, state, num_stages, num_blocks):
    """Stage outputs and logits of a stemmed map x: basic blocks, projections where width or stride changes."""
    stages = []
    for stage in range(1, num_stages + 1):
        for block in range(num_blocks):
            key, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = batch_norm(F.conv2d(x, state[f"{key}.conv1.weight"], stride=stride, padding=1), state, f"{key}.bn1")
            y = batch_norm(F.conv2d(y.clamp(min=0), state[f"{key}.conv2.weight"], padding=1), state, f"{key}.bn2")
            if stride == 2:
                x = F.conv2d(x, state[f"{key}.downsample.0.weight"], stride=2)
                x = batch_norm(x, state, f"{key}.downsample.1")
            x = (x + y).clamp(min=0)
        stages.append(x)
    return stages, x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def stem(images, state, large):
    """3x3 convolution for CIFAR; 7x7 with stride 2 and a 3x3 max-pool with stride 2 for ResNet-18."""
    stride, padding = (2, 3) if large else (1, 1)
    x = F.conv2d(images, state["conv1.weight"], stride=stride, padding=padding)
    x = batch_norm(x, state, "bn1").clamp(min=0)
    return F.max_pool2d(x, 3, stride=2, padding=1) if large else x


@pytest.mark.parametrize(("name", "num_stages", "num_blocks"), [("cifar_resnet56", 3, 9), ("resnet18", 4, 2)])
def test_forward_equals_the_composition(name, num_stages, num_blocks):
    model = create_model(name, num_classes=7, image_size=32).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)
    images, state = torch.randn(2, 3, 32, 32, dtype=torch.float64), model.state_dict()
    stages, logits = composed_resnet(stem(images, state, large=num_stages == 4), state, num_stages, num_blocks)
    model.eval()
    torch.testing.assert_close(model(images), logits)
    maps = model.forward_intermediates(images, indices=num_stages, intermediates_only=True)
    for got, want in zip(maps, stages, strict=True):
        torch.testing.assert_close(got, want)
    last, two = model.forward_intermediates(images, indices=[0, num_stages - 1])
    torch.testing.assert_close(model.forward_head(last), logits)
    assert len(two) == 2


@pytest.mark.parametrize(("image_size", "sides"), [(32, [32, 16, 8]), (64, [64, 32, 16]), (17, [17, 9, 5])])
def test_stage_maps_at_any_size(image_size, sides):
    model = timm.create_model("cifar_resnet8", num_classes=5)
    images = torch.zeros(1, 3, image_size, image_size)
    maps = model.forward_intermediates(images, intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(c, s, s) for c, s in zip((16, 32, 64), sides, strict=True)]
    assert len(model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)) == 1


def test_is_a_timm_model():
    model = timm.create_model("cifar_resnet20", num_classes=100, in_chans=1, drop_rate=0.1)
    assert model.get_classifier() is model.fc
    model.reset_classifier(3)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    model.reset_classifier(0, "")
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 64, 8, 8)
    features = timm.create_model("cifar_resnet8", features_only=True)
    assert features.feature_info.channels() == [16, 32, 64]
    assert features.feature_info.reduction() == [1, 2, 4]
    assert [tuple(f.shape) for f in features(torch.zeros(1, 3, 32, 32))] == [
        (1, 16, 32, 32),
        (1, 32, 16, 16),
        (1, 64, 8, 8),
    ]


def test_checkpointed_blocks_give_the_same_gradients():
    model = timm.create_model("cifar_resnet8", num_classes=5)
    images, grads = torch.randn(4, 3, 16, 16), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
