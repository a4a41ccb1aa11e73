"""lgfast.fuse_layers on a CPU in float32: plain blocks run as one operation, all others as they did before."""

import pytest
import torch
from torch import nn

import lgfast
from lgfast import _extension
from lgfast.config import StepConfig
from lgfast.fusion import layers
from tests.rounding import assert_all_rounded
from tests.small_models import images, output_and_gradients, true_output_and_gradients, vit

pytestmark = pytest.mark.skipif(not _extension.has_native(), reason="the operation has no reference kernel")


def fused(**options):
    model = vit(**options)
    lgfast.fuse(model)
    lgfast.fuse_layers(model)
    return model


@pytest.fixture
def whole(monkeypatch):
    """The blocks that ran as one operation, in order."""
    ran, run = [], layers.run_whole_block
    monkeypatch.setattr(layers, "run_whole_block", lambda block, x: (ran.append(block), run(block, x))[1])
    return ran


def test_output_and_gradients_match_float64(whole):
    model = vit().train()
    nn.init.normal_(model.blocks[0].norm1.bias)
    x = images(model)
    expected = true_output_and_gradients(model, x)
    lgfast.fuse(model)
    lgfast.fuse_layers(model)
    assert_all_rounded(output_and_gradients(model, x), expected)
    assert whole == list(model.blocks)


def test_blocks_with_hooks_of_their_own_keep_them(whole):
    model, seen = fused(), []
    model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    model(images(model))
    assert len(whole) == 2 and len(seen) == 1


def test_dropout_and_stochastic_depth_are_nothing_in_evaluation(whole):
    model = fused(drop_path_rate=0.5, proj_drop_rate=0.5)
    model.train()(images(model))
    assert len(whole) == 0
    model.eval()(images(model))
    assert len(whole) == 2


@pytest.mark.parametrize(
    "inner",
    ["norm1", "attn", "attn.qkv", "attn.proj", "ls1", "norm2", "mlp", "mlp.fc1", "mlp.act", "mlp.fc2"],
)
def test_a_hook_on_an_inner_module_is_called(inner, whole):
    model, calls = fused(), []
    model.blocks[0].get_submodule(inner).register_forward_hook(lambda *_: calls.append(1))
    model(images(model))
    assert whole == [model.blocks[1]] and calls


def switch_off(block):
    block.attn.fused_attn = False


def scale(block):
    block.attn.scale = 1.0


def replace_activation(block):
    block.mlp.act = nn.GELU(approximate="tanh")


def forward_of_its_own(block):
    block.mlp.fc2.forward = lambda x: nn.functional.linear(x, block.mlp.fc2.weight)


@pytest.mark.parametrize("change", [switch_off, scale, replace_activation, forward_of_its_own])
def test_a_changed_block_computes_as_it_did(change, whole):
    model = vit().eval()
    x = images(model)
    change(model.blocks[0])
    expected = model(x)
    lgfast.fuse_layers(model)
    lgfast.fuse(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert whole == [model.blocks[1]]


@pytest.mark.parametrize(
    "options",
    [{"init_values": 0.1}, {"qk_norm": True}, {"qkv_bias": False}, {"norm_layer": "rmsnorm"}, {"act_layer": "relu"}],
)
def test_blocks_of_more_than_the_operation_computes_run_as_before(options, whole):
    torch.manual_seed(0)
    plain = vit(**options).eval()
    model = fused(**options).eval()
    model.load_state_dict(plain.state_dict())
    x = images(model)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    assert whole == []


def test_attention_that_is_not_fused_stays(whole):
    model = vit()
    lgfast.fuse_layers(model)
    model(images(model))
    assert whole == []


def test_other_precisions_run_their_own_operations(whole):
    model = fused()
    with torch.autocast("cpu", torch.bfloat16):
        model(images(model))
    model.bfloat16()(images(model).bfloat16())
    assert whole == []


@pytest.mark.parametrize(
    ("device", "dtype", "pays"),
    [("cpu", torch.float32, True), ("cpu", torch.bfloat16, False), ("cuda", torch.float32, False)],
)
def test_where_fused_layers_auto_fuses(device, dtype, pays):
    assert layers.fused_layers_pay(torch.device(device), dtype) == pays
    assert StepConfig().fused_layers == "auto"
