"""Mimetic initialisation: what the products of the weights must be, by the paper's own figures, for every student."""

import math

import pytest
import timm
import torch
from torch import nn

from lgfast.assembly.networks import build_model
from lgfast.config import load_recipe, replace
from lgfast.models import create_model
from lgfast.models.mimetic import factors, init_mimetic, init_positions
from tests.small_models import SHALLOW

STUDENTS = ("deit_tiny_patch16_224", "t2t_vit_7", "pit_ti_224", "pvt_tiny", "pvt_v2_b0", "convit_tiny", "cvt_13")


def weights(module):
    """W_Q, W_K, W_V, W_proj of an attention module, as x multiplies them, each [d, d]."""
    if hasattr(module, "qkv"):
        q, k, v = module.qkv.weight.chunk(3)
    elif hasattr(module, "kv"):
        q, (k, v) = module.q.weight, module.kv.weight.chunk(2)
    elif hasattr(module, "qk"):
        (q, k), v = module.qk.weight.chunk(2), module.v.weight
    else:
        q, k, v = module.q.weight, module.k.weight, module.v.weight
    return [weight.detach().T for weight in (q, k, v, module.proj.weight)]


def attentions(model):
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] == "attn"]


@pytest.mark.parametrize("name", STUDENTS)
def test_products_have_the_paper_s_diagonals(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, image_size=224, **SHALLOW[name])
    init_mimetic(model)
    found = attentions(model)
    assert found
    for module in found:
        q, k, v, projection = weights(module)
        dim, heads = q.shape[0], module.num_heads
        product = v @ projection
        assert product.diagonal().mean().item() == pytest.approx(-0.4, abs=0.4 / dim**0.5)
        off = product - torch.diag(product.diagonal())
        assert off.square().sum().div(dim * (dim - 1)).sqrt().item() == pytest.approx(0.4 / math.sqrt(dim), rel=0.2)
        for q_head, k_head in zip(q.chunk(heads, 1), k.chunk(heads, 1), strict=True):
            mean = (q_head @ k_head.T).diagonal().mean().item()
            assert mean > 0.7 * (q_head.shape[1] / dim) * 0.5  # the identity's share of the first k of d directions


def test_all_directions_give_the_matrix_itself():
    torch.manual_seed(1)
    left, right = factors(48, 1 / math.sqrt(48), 0.7, 0.7)
    torch.manual_seed(1)
    expected = 0.7 * torch.randn(48, 48) / math.sqrt(48) + 0.7 * torch.eye(48)
    torch.testing.assert_close(left @ right.T, expected, rtol=0, atol=1e-5)
    sizes = (left.norm(dim=0) * right.norm(dim=0)).tolist()
    assert sizes == sorted(sizes, reverse=True)


def test_a_fresh_vit_attends_to_the_tokens_themselves():
    """Tokens of one direction each: a query's largest score is that of its own token."""
    torch.manual_seed(2)
    model = create_model("deit_tiny_patch16_224", num_classes=3, image_size=224)
    init_mimetic(model)
    q, k, *_ = weights(model.blocks[0].attn)
    tokens = nn.functional.normalize(torch.randn(64, 192), dim=1) * 192**0.5
    scores = (tokens @ q[:, :64]) @ (tokens @ k[:, :64]).T
    others = scores - torch.diag(scores.diagonal())
    assert scores.diagonal().mean() > 3 * others.abs().mean()


def test_biases_are_zero_and_other_layers_keep_theirs():
    model = create_model("deit_tiny_patch16_224", num_classes=3, image_size=32, patch_size=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    mlp = model.blocks[0].mlp.fc1.weight.clone()
    init_mimetic(model)
    assert not model.blocks[0].attn.qkv.bias.any() and not model.blocks[0].attn.proj.bias.any()
    assert torch.equal(model.blocks[0].mlp.fc1.weight, mlp)
    assert torch.all(model.blocks[0].mlp.fc1.bias >= 0.4)


def sorted_channels(grid):
    """The channels of [4, 4, 64], whichever their order."""
    return torch.stack(sorted(grid.reshape(16, 64).T.unbind(), key=lambda row: row.tolist()))


@pytest.mark.parametrize("shape", [(1, 17, 64), (1, 16, 64), (1, 64, 4, 4)])
def test_positions_are_sinusoids_of_rows_and_columns(shape):
    positions = torch.full(shape, 9.0)
    init_positions(positions)
    grid = positions[0].reshape(64, 16).T if len(shape) == 4 else positions[0, -16:]
    grid = grid.reshape(4, 4, 64)
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    frequencies = 10000.0 ** -(torch.arange(16) / 16)
    angles = [axis[..., None] * frequencies for axis in (x, y)]
    expected = torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=-1)
    found, wanted = (
        torch.stack(sorted(t.reshape(16, 64).T.unbind(), key=lambda row: row.tolist())) for t in (grid, expected)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    if shape[1] == 17:
        assert not positions[0, 0].any()


def test_one_seed_gives_one_initialisation():
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(create_model("deit_tiny_patch16_224", num_classes=3, image_size=32, patch_size=8))
        init_mimetic(models[-1])
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match=r"model\.init=mimetic: ResNet has no attention"):
        init_mimetic(timm.create_model("resnet18"))


def test_a_run_begins_with_it_where_its_configuration_says_so():
    config = replace(load_recipe("digits"), {"model.init": "mimetic", "model.attention": "plain"})
    products = []
    for own in (config, replace(config, {"model.init": "own"})):
        torch.manual_seed(0)
        _, _, value, projection = weights(build_model(own, num_classes=10).blocks[0].attn)
        products.append((value @ projection).diagonal().mean().item())
    assert products[0] < -0.3 and abs(products[1]) < 0.05
