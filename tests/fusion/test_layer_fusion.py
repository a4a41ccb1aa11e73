"""lgfast.fuse_layers and unfuse_layers: what is swapped, that the rest stays, and that the model computes the same."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import nn

import lgfast
from lgfast import _extension, fuse_layers, unfuse_layers
from lgfast.fusion.layers import drop_scale, patch_product
from lgfast.models import create_model
from lgfast.models.taps import FeatureTaps
from tests.rounding import assert_all_rounded
from tests.small_models import cvt, images, output_and_gradients, pvt, pvt_v2, true_output_and_gradients, vit

SMALL = {  # two blocks, or stages of one
    "vit": vit,
    "vit_layer_scale": lambda: vit(init_values=0.1),
    "pvt_tiny": pvt,
    "pvt_v2": pvt_v2,
    "cvt": cvt,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", SMALL)
def test_fused_output_and_gradients_match_float64(family, dtype):
    model = SMALL[family]().to(dtype)
    x = images(model).to(dtype)
    expected = true_output_and_gradients(model, x)
    assert fuse_layers(model).fused
    assert_all_rounded(output_and_gradients(model, x), expected)


def test_the_operations_are_called():
    model = vit().bfloat16()  # in float32 on a CPU PyTorch's operations are faster
    fuse_layers(model)
    with torch.profiler.profile() as profile:
        output_and_gradients(model, images(model).bfloat16())
    names = [event.name for event in profile.events()]
    for op in ("add_layer_norm_fwd", "add_layer_norm_bwd", "bias_gelu_fwd", "bias_gelu_bwd"):
        assert names.count(f"lgfast::{op}") == 2
    if _extension.has_native():  # the reference calls it
        assert names.count("aten::gelu") == 0


def test_drop_path_draws_as_timm_does():
    model = vit(drop_path_rate=0.6).train()
    x = torch.randn(16, 3, 32, 32)
    torch.manual_seed(3)
    expected = output_and_gradients(model, x)
    after = torch.randn(1)
    fuse_layers(model)
    torch.manual_seed(3)
    fused = output_and_gradients(model, x)
    assert torch.equal(torch.randn(1), after)  # the generator has moved on by as much
    for name, value in fused.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5 * expected[name].abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("module", [DropPath(0.3), DropPath(0.3, scale_by_keep=False), DropPath(1.0), DropPath(0.0)])
def test_drop_scale_is_what_drop_path_multiplies_by(module, dtype):
    ones = torch.ones(50, 4, 8, dtype=dtype)
    torch.manual_seed(1)
    expected = module(ones)
    torch.manual_seed(1)
    scale = drop_scale(module, ones)
    assert torch.equal(ones if scale is None else ones * scale[:, None, None], expected)
    assert drop_scale(copy.deepcopy(module).eval(), ones) is None


@pytest.mark.parametrize(
    ("name", "num_blocks", "num_mlps", "num_patch_convs"),
    [("deit_tiny_patch16_224", 12, 12, 1), ("pit_ti_224", 12, 12, 0), ("t2t_vit_7", 7, 9, 0), ("pvt_tiny", 8, 8, 10),
     ("pvt_v2_b0", 8, 0, 6), ("cvt_13", 13, 0, 0), ("convit_tiny", 0, 12, 1)],
)  # fmt: skip
def test_what_is_fused_of_each_family(name, num_blocks, num_mlps, num_patch_convs):
    model = create_model(name, num_classes=3)
    keys = list(model.state_dict())
    fused = [model.get_submodule(name) for name in fuse_layers(model).fused]
    counts = (num_blocks, num_mlps, num_patch_convs)
    assert sum(isinstance(module, Mlp) for module in fused) == num_mlps
    assert sum(isinstance(module, nn.Conv2d) for module in fused) == num_patch_convs
    assert len(fused) == sum(counts)
    assert list(model.state_dict()) == keys


def test_taps_still_read_the_residual_stream():
    model = vit().eval()
    taps, x = FeatureTaps(model, (0, 1)), images(vit())
    model(x)
    expected = taps.take()
    fuse_layers(model)
    model(x)
    for (tokens, grid), (wanted, wanted_grid) in zip(taps.take(), expected, strict=True):
        assert grid == wanted_grid
        torch.testing.assert_close(tokens, wanted, rtol=1e-4, atol=1e-5)


def test_fusing_twice_and_unfusing():
    model = vit()
    kinds = [type(module) for module in model.modules()]
    report = fuse_layers(model)
    assert report == fuse_layers(model)
    assert report.fused == ("patch_embed.proj", "blocks.0", "blocks.0.mlp", "blocks.1", "blocks.1.mlp")
    assert len(lgfast.fuse(model).fused) == 2  # both kinds of fusion together
    lgfast.unfuse(model)
    unfuse_layers(model)
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: vit(embed_dim=1024), "channels must be a multiple of 8 from 8 to 512, got 1024"),
        (lambda: vit(act_layer="gelu_tanh"), "its activation must be the exact GELU"),
        (lambda: vit(norm_layer="rmsnorm"), "norm2 must be a plain LayerNorm, got RmsNorm"),
        (lambda: vit(block_fn=timm.models.vision_transformer.ResPostBlock), "no fused form of its class"),
        (lambda: create_model("cvt_13", num_classes=3, depths=(1, 1, 1)), "exact GELU"),
        (lambda: create_model("convit_tiny", num_classes=3), "left as they are: 12 Block"),
    ],
)
def test_refuses_with_a_reason(model, words):
    assert words in str(fuse_layers(model()))


@pytest.mark.parametrize("inner", ["norm2", "mlp.fc1", "mlp.act"])
def test_modules_with_hooks_of_their_own_are_left(inner):
    model = vit()
    calls = []
    model.blocks[0].get_submodule(inner).register_forward_hook(lambda *_: calls.append(1))
    report = fuse_layers(model)
    assert len(report.fused) == 4 and "has hooks" in str(report)
    model(images(model))
    assert calls


def test_a_fused_model_compiles_fullgraph():
    model = vit(drop_path_rate=0.5).eval()
    fuse_layers(model)
    x = images(model)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_report_prints():
    claim = "blocks and MLPs use lgfast.ops.add_layer_norm and bias_gelu, patch convolutions on CUDA a matrix product"
    assert str(fuse_layers(vit())) == f"5 {claim}"
    assert str(fuse_layers(nn.Linear(2, 2))) == f"0 {claim}"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("has_bias", [True, False])
def test_patch_product_is_the_convolution(memory_format, has_bias):
    x = torch.randn(2, 3, 17, 27, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weight = torch.randn(6, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True) if has_bias else None
    leaves = [x, weight] + [bias] * has_bias
    expected = F.conv2d(x, weight, bias, stride=(4, 8))
    out = patch_product(x, weight, bias)
    dout = torch.randn_like(expected)
    torch.testing.assert_close(out, expected)
    assert out.flatten(2).transpose(1, 2).is_contiguous()
    expected_grads = torch.autograd.grad(expected, leaves, dout)
    for grad, expected_grad in zip(torch.autograd.grad(out, leaves, dout), expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 2}, {"kernel_size": 1, "stride": 1},
     {"padding": "same", "stride": 1}],
)  # fmt: skip
def test_other_convolutions_are_left(options):
    conv = nn.Conv2d(4, 4, **{"kernel_size": 4, "stride": 4} | options)
    assert not fuse_layers(conv).fused


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 3, 17, 27), (3, 17, 27)])
def test_a_patch_convolution_on_the_gpu(shape):
    conv = nn.Conv2d(3, 6, (4, 8), (4, 8)).cuda()
    x = torch.randn(shape, device="cuda")
    expected = conv(x)
    assert fuse_layers(conv).fused
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        conv(x[..., :7])
