"""Structured initialisation: heads look where a convolution's impulse is, for every student with one grid."""

import pytest
import timm
import torch
from torch.nn import functional as F

from lgfast.assembly.networks import build_model
from lgfast.config import load_recipe, replace
from lgfast.models import create_model
from lgfast.models.impulse import init_impulse
from tests.models.test_mimetic import attentions, weights

# The order of the authors' code, as numbers of a 3 x 3 filter read by rows.
FILTER = (4, 1, 5, 3, 7, 0, 2, 6, 8)


def neighbours(side, number):
    """The patch that each patch [side * side] should look at; -1 where it is outside the image."""
    numbers = torch.arange(side * side).view(1, 1, side, side).float()
    kernel = torch.zeros(1, 1, 3, 3)
    kernel.view(-1)[number] = 1
    return F.conv2d(F.pad(numbers, (1, 1, 1, 1), value=-1.0), kernel).flatten().long()


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "convit_tiny", "t2t_vit_7"])
def test_each_head_looks_where_its_impulse_is(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, image_size=112)
    before = model.pos_embed.detach().clone()
    init_impulse(model)
    scale = 18 if before.requires_grad or model.pos_embed.requires_grad else 1
    torch.testing.assert_close(model.pos_embed.detach(), scale * before)
    positions = model.pos_embed.detach()[0, -49:]
    tokens = F.layer_norm(positions, positions.shape[1:])
    for module in [found for found in attentions(model) if found.proj.weight.shape[0] == tokens.shape[1]]:
        q, k, v, projection = weights(module)
        heads = zip(q.chunk(module.num_heads, 1), k.chunk(module.num_heads, 1), strict=True)
        for number, (q_head, k_head) in zip(FILTER, heads, strict=False):
            assert q_head.norm().item() == pytest.approx(7, rel=1e-4) == k_head.norm().item()
            looked_at, expected = (tokens @ q_head @ k_head.T @ tokens.T).argmax(1), neighbours(7, number)
            inside = expected >= 0
            assert (looked_at == expected)[inside].float().mean() > 0.95
        assert (v @ projection).diagonal().mean().item() == pytest.approx(-0.4, abs=0.4 / len(v) ** 0.5)
        assert all(layer.bias is None or not layer.bias.any() for layer in (module.proj,))


@pytest.mark.parametrize("name", ["pit_ti_224", "pvt_tiny", "pvt_v2_b0", "cvt_13"])
def test_students_of_several_grids_are_refused(name):
    with pytest.raises(ValueError, match=r"model\.init=impulse: \w+ has no pos_embed .*use model\.init=mimetic"):
        init_impulse(create_model(name, num_classes=3, image_size=64))


def test_a_network_without_attention_is_refused():
    with pytest.raises(ValueError, match=r"model\.init=impulse: ResNet has no pos_embed"):
        init_impulse(timm.create_model("resnet18"))


def test_the_key_initialises_the_model_from_the_seed():
    config = replace(load_recipe("digits"), {"model.init": "impulse", "model.attention": "plain"})
    models = []
    for _ in range(2):
        torch.manual_seed(4)
        models.append(build_model(config, 10))
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)
    query = models[0].blocks[0].attn.qkv.weight[: models[0].blocks[0].attn.head_dim]
    assert query.norm().item() == pytest.approx(7, rel=1e-4)
