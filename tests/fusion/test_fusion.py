"""lgfast.fuse and unfuse: what is swapped, that nothing else changes, and that the swapped modules compute the same."""

import copy
import importlib
import io
import re
from collections import Counter

import pytest
import timm
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import lgfast
from lgfast import fuse, unfuse
from lgfast.assembly.networks import build_model
from lgfast.config import from_dict
from lgfast.doctor.gpus import STUDENT_ATTENTIONS
from lgfast.fusion import attention as fused_attention
from lgfast.models import create_model
from lgfast.ops.short_attention import unsupported_shape_reason
from tests.rounding import assert_all_rounded
from tests.small_models import cvt, images, output_and_gradients, pvt_v2, true_output_and_gradients, vit

CONVIT = {"num_classes": 5, "num_heads": 2, "depth": 2, "local_up_to_layer": 1, "drop_path_rate": 0.0}  # each kind
SMALL = {  # head dim 32, ConViT's 48; two blocks or stages of one
    "vit": vit,
    "vit_qk_norm": lambda: vit(qk_norm=True),
    "vit_no_bias": lambda: vit(qkv_bias=False),
    "pvt_v2": pvt_v2,
    "convit": lambda: create_model("convit_tiny", image_size=64, **CONVIT),
    "convit_timm": lambda: timm.create_model("convit_tiny", img_size=64, **CONVIT),
    "cvt": cvt,
}


@pytest.fixture
def kernels_on_cpu(monkeypatch):
    """The ops' path on CPU, where the reference is the kernel."""
    monkeypatch.setattr(importlib.import_module("lgfast.ops.short_attention"), "_unavailable_reason", lambda _: None)


@pytest.mark.parametrize("family", SMALL)
def test_in_float64_nothing_changes_to_the_bit(family):
    model = SMALL[family]().double()
    x = images(model).double()
    before = output_and_gradients(model, x)
    assert fuse(model).fused
    after = output_and_gradients(model, x)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def check_fused(model, x, monkeypatch, dtype=torch.bfloat16):
    """Check the fused model's output and every gradient, and that each attention ran fused."""
    expected = true_output_and_gradients(model.to(dtype), x.to(dtype))
    calls = []
    for name in ("short_attention", "short_attention_qkvpacked"):
        op = getattr(fused_attention, name)
        monkeypatch.setattr(
            fused_attention, name, lambda *args, op=op, **options: calls.append(op) or op(*args, **options)
        )
    report = fuse(model)
    fused = output_and_gradients(model, x.to(dtype))
    assert len(calls) == len(report.fused)
    assert_all_rounded(fused, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", SMALL)
def test_fused_output_and_gradients_match_float64(family, dtype, kernels_on_cpu, monkeypatch):
    model = SMALL[family]()
    check_fused(model, images(model), monkeypatch, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("family", SMALL)
def test_on_a_gpu_fused_output_and_gradients_match_float64(family, monkeypatch):
    model = SMALL[family]()
    check_fused(model.cuda(), images(model).cuda(), monkeypatch)


def test_kernels_are_called(kernels_on_cpu, monkeypatch):
    """The two packed ops run once a layer, and the projection's bias gradient comes from them."""
    model = vit().bfloat16()
    fuse(model)
    with torch.profiler.profile() as profile:
        output_and_gradients(model, images(model).bfloat16())
    names = [event.name for event in profile.events()]
    assert names.count("lgfast::short_attention_qkvpacked_fwd") == 2
    assert names.count("lgfast::short_attention_qkvpacked_bwd") == 2
    assert model.blocks[0].attn.qkv.bias.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "name, listed_as, count, left, too_large",
    [("deit_tiny_patch16_224", "DeiT-Ti, ViT-S, T2T-ViT", 12, {}, []), ("pit_ti_224", "PiT-Ti", 12, {}, []),
     ("pvt_tiny", "PVT-Ti", 8, {}, []), ("pvt_v2_b0", "PVTv2-B0", 8, {}, []),
     ("convit_tiny", "ConViT-Ti", 12, {}, []), ("t2t_vit_7", "DeiT-Ti, ViT-S, T2T-ViT", 7, {"PerformerLayer": 2}, []),
     ("cvt_13", "CvT-13", 13, {}, ["at most 1024 queries for 784 keys, got 3136"])],
)  # fmt: skip
def test_every_softmax_attention_of_the_students_is_fused(
    name, listed_as, count, left, too_large, kernels_on_cpu, monkeypatch
):
    """At 224 the kernels take all of them but CvT's first stage."""
    model = create_model(name, num_classes=3)
    keys = list(model.state_dict())
    report = fuse(model)
    assert len(report.fused) == count
    assert Counter(class_name for _, class_name, _ in report.refused) == left
    assert list(model.state_dict()) == keys

    reasons, shapes = [], set()

    def recorded(*args):
        reasons.append(unsupported_shape_reason(*args))
        shapes.add(args[2:])
        return reasons[-1]

    module = importlib.import_module("lgfast.ops.short_attention")
    monkeypatch.setattr(module, "unsupported_shape_reason", recorded)
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes, no arithmetic
        model.bfloat16()(torch.empty(2, 3, 224, 224, dtype=torch.bfloat16))
    assert len(reasons) == count
    assert [reason for reason in reasons if reason] == too_large
    assert shapes == set(STUDENT_ATTENTIONS[listed_as])  # the README's table of kernels by GPU


def test_fusing_twice_and_unfusing():
    model = vit()
    kinds = [type(module) for module in model.modules()]
    report = fuse(model)
    assert report == fuse(model)
    assert report.fused == ("blocks.0.attn", "blocks.1.attn")
    unfuse(model)
    assert [type(module) for module in model.modules()] == kinds


def test_a_copy_of_a_fused_model_stays_fused():
    model = vit()
    report = fuse(model)
    copied = copy.deepcopy(model)
    assert fuse(copied) == report and type(copied.blocks[0].attn) is type(model.blocks[0].attn)


@pytest.mark.parametrize(
    "model, words",
    [
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)), "relative position bias"),
        (lambda: vit(num_heads=4), "head dim must be 32, 48 or 64, got 16"),
        (lambda: vit(attn_drop_rate=0.1), "attention dropout 0.1"),
        (lambda: timm.create_model("convit_tiny", **CONVIT, attn_drop_rate=0.1), "attention dropout 0.1"),
        (lambda: create_model("t2t_vit_7", num_classes=3).patch_embed, "linear attention: its scores take no softmax"),
        (lambda: nn.Sequential(nn.MultiheadAttention(64, 2)), "no fused form is registered"),
    ],
)
def test_refuses_with_a_reason(model, words):
    model = model()
    kinds = [type(module) for module in model.modules()]
    report = fuse(model)
    assert not report.fused and report.refused
    assert words in str(report)
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("swap", [lgfast.fuse, lgfast.unfuse, lgfast.fuse_layers, lgfast.unfuse_layers])
def test_what_is_no_model_is_named(swap):
    with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module, got str"):
        swap("deit_tiny_patch16_224")


def test_masked_attention_keeps_its_forward(kernels_on_cpu):
    attention = vit().blocks[0].attn.bfloat16()
    x, mask = torch.randn(1, 17, 64).bfloat16(), torch.zeros(17, 17).bfloat16()
    mask[:, 3] = -100
    expected = attention(x, attn_mask=mask)
    fuse(attention)
    assert torch.equal(attention(x, attn_mask=mask), expected)


def test_a_fused_model_is_exported_with_its_operations():
    """For any batch size, through a file; after `unfuse` without them."""
    model = vit().eval()
    fuse(model)
    x, file = images(model), io.BytesIO()
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes), file)
    file.seek(0)
    loaded = torch.export.load(file)
    more = torch.cat([x, x, x[:1]])
    torch.testing.assert_close(loaded.module()(more), model(more))
    assert any("short_attention" in str(node.target) for node in loaded.graph.nodes)
    unfuse(model)
    plain = torch.export.export(model, (x,))
    assert not any("lgfast" in str(node.target) for node in plain.graph.nodes)


def test_a_fused_model_compiles_fullgraph(kernels_on_cpu):
    model = vit().bfloat16()
    fuse(model)
    x = images(model).bfloat16()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_a_run_fuses_its_model_and_in_float64_trains_to_the_same_bits():
    models = {}
    for attention in ("fused", "plain"):
        shape = {"patch_size": 8, "embed_dim": 64, "num_heads": 2, "depth": 2}
        config = from_dict({"model": {**shape, "attention": attention}, "augment": {"image_size": 32}})
        torch.manual_seed(0)
        model = models[attention] = build_model(config, num_classes=5).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for seed in range(2):
            x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).double()
            loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 3]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert len(fuse(copy.deepcopy(models["plain"])).fused) == 2
    kinds = {name: type(model.blocks[0].attn) for name, model in models.items()}
    assert issubclass(kinds["fused"], kinds["plain"]) and kinds["fused"] is not kinds["plain"]
    for name, value in models["plain"].state_dict().items():
        assert torch.equal(models["fused"].state_dict()[name], value), name


def test_report_prints():
    assert str(fuse(vit())).splitlines()[0] == "2 attention modules use lgfast.ops.short_attention"
    assert str(lgfast.fuse(nn.Linear(2, 2))) == "0 attention modules use lgfast.ops.short_attention"


def test_the_report_says_up_to_which_size_the_kernels_run(kernels_on_cpu):
    """The numbers of its line are those at which the ops stop taking an input."""
    numbers = re.search(r"(\d+) keys and (\d+) queries at most \((\d+) queries over (\d+) keys\)", str(fuse(vit())))
    max_keys, max_queries, most_queries, few_keys = map(int, numbers.groups())

    def takes(queries, keys):
        return unsupported_shape_reason(torch.device("cpu"), torch.bfloat16, queries, keys, 32) is None

    assert takes(max_queries, max_keys) and takes(most_queries, few_keys)
    assert not takes(1, max_keys + 1) and not takes(max_queries + 1, few_keys + 1) and not takes(most_queries + 1, 1)


def test_the_report_says_what_the_kernels_lack_on_the_model_s_device(monkeypatch):
    monkeypatch.setattr(lgfast._extension, "has_native", lambda: False)
    assert str(fuse(vit())).endswith("attention; but on cpu: lgfast was built without its CPU kernels")
    assert str(fuse(vit().to("meta"))).endswith("on a larger input a module runs PyTorch's attention")


def test_report_gives_examples_of_what_stays():
    attention = nn.MultiheadAttention(8, 2)
    for model, examples in (
        (attention, "1 MultiheadAttention (the model itself):"),
        (nn.Sequential(attention), "1 MultiheadAttention (0):"),
        (nn.Sequential(attention, nn.MultiheadAttention(8, 2)), "2 MultiheadAttention (0, ...):"),
    ):
        assert f"left as they are: {examples}" in str(lgfast.fuse(model))
