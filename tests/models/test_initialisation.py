"""Initial weights have the distributions of the paper's code."""

import math

import pytest
import torch
from torch import nn

from lgfast.models import create_model

DEIT, T2T, PIT, PVT, PVT2, CONVIT, CVT = (
    "deit_tiny_patch16_224", "t2t_vit_7", "pit_ti_224", "pvt_tiny", "pvt_v2_b0", "convit_tiny", "cvt_13"
)  # fmt: skip


@pytest.fixture(scope="module")
def fresh():
    """Freshly built models at 224 and 100 classes; tests only read them."""
    built = {}

    def get(name):
        if name not in built:
            torch.manual_seed(0)
            built[name] = create_model(name, num_classes=100)
        return built[name]

    return get


def assert_normal(tensor, std, name):
    """Mean and spread of a sample within five standard errors of N(0, std)."""
    n = tensor.numel()
    assert abs(tensor.mean().item()) < 5 * std / math.sqrt(n), name
    assert abs(tensor.std().item() / std - 1) < 5 / math.sqrt(2 * n), name


def assert_default(module, name):
    """PyTorch's default: weight and bias uniform within 1 / sqrt(fan in)."""
    bound = 1 / math.sqrt(module.weight[0].numel())
    for tensor in (module.weight, module.bias):
        if tensor is not None:
            assert tensor.abs().max() <= bound, name
            n = tensor.numel()
            assert abs(tensor.std().item() / (bound / math.sqrt(3)) - 1) < 5 / math.sqrt(n), name


def linears(model):
    return {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}


def convs(model):
    return {key: module for key, module in model.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize("name", [DEIT, T2T, PVT, PVT2, CVT])
def test_linear_layers_are_normal_with_zero_bias(name, fresh):
    for key, module in linears(fresh(name)).items():
        if key != "head":
            assert_normal(module.weight, 0.02, key)
            assert module.bias is None or not module.bias.any(), key


def test_linear_layers_of_convit(fresh):
    for key, module in linears(fresh(CONVIT)).items():
        if key.endswith("attn.v") and int(key.split(".")[1]) < 10:
            assert torch.equal(module.weight, torch.eye(192)), key
        elif key.endswith("pos_proj"):
            rows = [[2 * (h2 - 0.5), 2 * (h1 - 0.5), -1] for h2 in (0, 1) for h1 in (0, 1)]
            assert torch.equal(module.weight, torch.tensor(rows)), key
            assert not module.bias.any(), key
        else:
            assert_normal(module.weight, 0.02, key)
    gates = [p for key, p in fresh(CONVIT).named_parameters() if key.endswith("gating_param")]
    assert len(gates) == 10
    assert all(torch.equal(gate, torch.ones(4)) for gate in gates)


def test_pit_keeps_the_defaults(fresh):
    for key, module in {**linears(fresh(PIT)), **convs(fresh(PIT))}.items():
        assert_default(module, key)


@pytest.mark.parametrize("name", [DEIT, PVT, CONVIT, CVT])
def test_convolutions_keep_the_defaults(name, fresh):
    for key, module in convs(fresh(name)).items():
        assert_default(module, key)


def test_convolutions_of_pvt_v2(fresh):
    for key, module in convs(fresh(PVT2)).items():
        fan_out = module.kernel_size[0] ** 2 * module.out_channels / module.groups
        assert_normal(module.weight, math.sqrt(2 / fan_out), key)
        assert not module.bias.any(), key


@pytest.mark.parametrize("name", [DEIT, T2T, PIT, PVT, CONVIT, CVT])
def test_tokens_and_learned_positions_are_normal(name, fresh):
    for key, parameter in fresh(name).named_parameters():
        if "cls_token" in key or ("pos_embed" in key and name != T2T):
            assert_normal(parameter, 0.02, key)


@pytest.mark.parametrize("name", [DEIT, T2T, PIT, PVT, PVT2, CONVIT, CVT])
def test_norms_start_as_identity(name, fresh):
    for key, module in fresh(name).named_modules():
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert torch.all(module.weight == 1) and not module.bias.any(), key


def test_heads(fresh):
    head = fresh(DEIT).head
    assert not head.weight.any() and not head.bias.any()
    head = fresh(CVT).head
    assert_normal(head.weight, 0.02, "cvt head")
    assert 0 < head.bias.abs().max() <= 1 / math.sqrt(384)
    for name in (T2T, PVT, PVT2, CONVIT):
        assert_normal(fresh(name).head.weight, 0.02, name)
        assert not fresh(name).head.bias.any()


def test_performer_features_are_orthogonal(fresh):
    for layer in (fresh(T2T).patch_embed.attention1, fresh(T2T).patch_embed.attention2):
        assert not layer.w.requires_grad
        torch.testing.assert_close(layer.w @ layer.w.T, 32 * torch.eye(32), rtol=0, atol=1e-4)


def test_positions_of_t2t_are_fixed(fresh):
    model = fresh(T2T)
    assert not model.pos_embed.requires_grad
    assert model.pos_embed[0, 0, 0] == 0 and model.pos_embed[0, 0, 1] == 1
    assert model.pos_embed[0, 5, 7].item() == pytest.approx(math.cos(5 / 10000 ** (6 / 256)), abs=1e-6)
