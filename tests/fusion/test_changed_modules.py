"""Fused modules whose children or switches a user changed compute what the plain model does after the same change."""

import copy
import functools
import warnings

import pytest
import timm
import torch
from timm.models import vision_transformer
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lgfast import fuse, fuse_layers
from lgfast.fusion.attention import FusedVitAttention
from lgfast.ops import once
from tests.small_models import cvt, images, output_and_gradients, pvt_v2, vit


class Lora(nn.Module):
    """An adapter that wraps a projection."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.linspace(-1, 1, 2 * base.in_features).view(2, -1) / 8)
        self.up = nn.Parameter(torch.linspace(1, -1, 2 * base.out_features).view(-1, 2) / 8)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class Doubled(nn.Linear):
    """A projection of a user's own class."""

    def forward(self, x):
        return 2 * super().forward(x)


class Halved(nn.Module):
    """A parametrization, or any module of no class that lgfast knows."""

    def forward(self, x):
        return x / 2


def replace(model, name, make):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, make(model.get_submodule(name)))


def as_class(kind):
    def make(module):
        module.__class__ = kind
        return module

    return make


def override(module):
    plain = module.forward
    module.forward = lambda x: 1.5 * plain(x)


def lora_in_place(module):
    """Replace a projection's forward by a function, as some adapters do."""
    plain, down = module.forward, torch.linspace(-1, 1, module.in_features) / 8
    module.forward = lambda x: plain(x) + (x @ down)[..., None]


CHILD = {  # what is done to a child of each kind
    "forward hook": lambda m, n: m.get_submodule(n).register_forward_hook(lambda module, args, out: 2 * out),
    "pre-hook": lambda m, n: m.get_submodule(n).register_forward_pre_hook(lambda module, args: (args[0] * 0.5,)),
    "backward hook": lambda m, n: m.get_submodule(n).register_full_backward_hook(
        lambda module, grads, _: (grads[0] * 2,)
    ),
    "forward of its own": lambda m, n: override(m.get_submodule(n)),
    "replaced": lambda m, n: replace(m, n, lambda module: Halved()),
}
LINEAR = {  # what is done to a projection
    **{name: change for name, change in CHILD.items() if name != "replaced"},
    "pruned": lambda m, n: prune.l1_unstructured(m.get_submodule(n), "weight", 0.5),
    "parametrized": lambda m, n: parametrize.register_parametrization(m.get_submodule(n), "weight", Halved()),
    "weight norm": lambda m, n: parametrizations.weight_norm(m.get_submodule(n)),
    "adapter around": lambda m, n: replace(m, n, Lora),
    "adapter inside": lambda m, n: lora_in_place(m.get_submodule(n)),
    "subclass": lambda m, n: replace(m, n, as_class(Doubled)),
    "frozen": lambda m, n: m.get_submodule(n).requires_grad_(False),
}
CASES = [
    *(("attn.qkv", name, change) for name, change in LINEAR.items()),
    *(("mlp.fc1", name, change) for name, change in LINEAR.items()),
    *((child, name, change) for child in ("mlp.act", "norm2", "drop_path1") for name, change in CHILD.items()),
    ("norm2", "pruned", lambda m, n: prune.l1_unstructured(m.get_submodule(n), "weight", 0.5)),
    ("attn.q_norm", "forward hook", CHILD["forward hook"]),
    ("attn.proj", "adapter around", LINEAR["adapter around"]),
]


@pytest.fixture(autouse=True)
def each_warning_again(monkeypatch):
    monkeypatch.setattr(once, "_warn", functools.cache(once._warn.__wrapped__))


def plain_and_fused(change, fuses_first, build=vit):
    """Make two models with the same change, and fuse one of them, before the change or after it."""
    torch.manual_seed(0)
    plain = build()
    fused = copy.deepcopy(plain)
    for model, is_fused in ((plain, False), (fused, True)):
        if is_fused and fuses_first:
            assert fuse(model).fused and fuse_layers(model).fused
        change(model)
        if is_fused and not fuses_first:
            fuse(model), fuse_layers(model)
    return plain, fused


def assert_computes_the_same(plain, fused):
    for mode in (True, False):
        x = images(plain)
        expected, found = (output_and_gradients(model.train(mode), x) for model in (plain, fused))
        assert expected.keys() == found.keys()
        size = {name: value.abs().max().item() for name, value in expected.items()}
        largest = max(size.values())  # of the terms of a gradient that cancels
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * size[name] + 1e-6 * largest, msg=name)


@pytest.mark.filterwarnings("ignore:Fused")
@pytest.mark.parametrize("fuses_first", [True, False], ids=["after", "before"])
@pytest.mark.parametrize(("child", "name", "change"), CASES, ids=[f"{child}, {name}" for child, name, _ in CASES])
def test_a_changed_child_counts(child, name, change, fuses_first):
    plain, fused = plain_and_fused(lambda model: change(model, f"blocks.0.{child}"), fuses_first)
    assert_computes_the_same(plain, fused)


def test_norms_of_queries_see_what_timm_gives_them():
    seen = []

    def change(model):
        model.blocks[0].attn.q_norm.register_forward_hook(lambda module, args, out: seen.append(out.detach().clone()))

    plain, fused = plain_and_fused(change, True, lambda: vit(qk_norm=True))
    x = images(plain)
    plain(x), fused(x)
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Fused")
@pytest.mark.parametrize("kind", [nn.ReLU, vision_transformer.LayerScale])
def test_another_activation_counts(kind):
    make = (lambda module: kind(256)) if kind is vision_transformer.LayerScale else lambda module: kind()
    assert_computes_the_same(*plain_and_fused(lambda model: replace(model, "blocks.0.mlp.act", make), True))


def test_pruned_weights_train_step_after_step():
    def change(model):
        for block in model.blocks:
            for child in (block.attn.qkv, block.mlp.fc1):
                prune.l1_unstructured(child, "weight", 0.5)

    weights = []
    for model in plain_and_fused(change, True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for seed in range(3):
            optimizer.zero_grad()
            x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
            model(x).square().mean().backward()
            optimizer.step()
        weights.append(model.state_dict())
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of torch.ao
def test_dynamic_quantization():
    quantize = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    plain, fused = plain_and_fused(lambda model: None, True)
    x = images(plain)
    plain, fused = (quantize(model.eval(), {nn.Linear}) for model in (plain, fused))
    assert type(fused.blocks[0].attn.qkv) is not nn.Linear
    # an activation that lands between two of 256 levels may round either way
    torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=0.05 * plain(x).abs().max().item())


def test_attention_maps_are_had_by_the_way_of_timm():
    """timm's way is to switch the fused attention off and hook attn_drop."""
    maps = []

    def change(model):
        for block in model.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda module, args, out: maps.append(out))

    plain, fused = plain_and_fused(change, True)
    assert isinstance(fused.blocks[0].attn, FusedVitAttention)
    x = images(plain)
    plain(x)
    with pytest.warns(
        UserWarning, match="FusedVitAttention runs its original forward, unfused: its fused_attn is off"
    ) as seen:
        fused(x)
    assert len(seen) == 1  # of two blocks
    for found, expected in zip(maps[2:], maps[:2], strict=True):
        torch.testing.assert_close(found, expected)


SWITCHES = {
    "fused_attn": {"fused_attn": False},
    "scale, by timm's own attention": {"fused_attn": False, "scale": 0.5},
    "scale": {"scale": 0.5},
}
FAMILIES = {
    "vit": vit,
    "pvt_v2": pvt_v2,
}


@pytest.mark.filterwarnings("ignore:Fused")
@pytest.mark.parametrize("fuses_first", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("settings", SWITCHES.values(), ids=SWITCHES.keys())
@pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES.keys())
def test_switches_of_the_attention_count(build, settings, fuses_first):
    def change(model):
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                vars(module).update(settings)

    plain, fused = plain_and_fused(change, fuses_first, build)
    assert_computes_the_same(plain, fused)
    assert isinstance(next(m for m in fused.modules() if hasattr(m, "fused_attn")), FusedVitAttention) <= fuses_first


DROPOUT = {
    "vit": vit,
    "cvt": cvt,
    "timm's convit": lambda: timm.create_model(
        "convit_tiny", img_size=64, num_classes=5, depth=2, local_up_to_layer=1, drop_path_rate=0.0
    ),
}


@pytest.mark.parametrize("build", DROPOUT.values(), ids=DROPOUT.keys())
def test_attention_dropout_switched_on_later_drops(build):
    def change(model):
        for module in model.modules():
            if hasattr(module, "attn_drop"):
                module.attn_drop.p = 0.5

    results = []
    for model in plain_and_fused(change, True, build):
        torch.manual_seed(1)
        x = images(model)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            results.append(output_and_gradients(model.train(), x)["out"])
    assert any("attention dropout needs the probabilities" in str(one.message) for one in said)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_hooks_on_the_probabilities_of_timms_convit():
    seen = []

    def change(model):
        for module in model.modules():
            if hasattr(module, "attn_drop"):
                module.attn_drop.register_forward_hook(lambda module, args, out: seen.append(out.shape))

    plain, fused = plain_and_fused(change, True, DROPOUT["timm's convit"])
    with pytest.warns(UserWarning, match="its attn_drop has hooks"):
        plain(images(plain)), fused(images(fused))
    assert len(seen) == 4


def test_hooks_for_every_module_see_every_module():
    plain, fused = plain_and_fused(lambda model: None, True)
    counts = []
    for model in (plain, fused):
        names = []
        with torch.nn.modules.module.register_module_forward_hook(lambda module, *_, names=names: names.append(module)):
            model(images(model))
        counts.append(len(names))
    assert counts[0] == counts[1]


@pytest.mark.filterwarnings("ignore:Fused")
def test_a_changed_model_compiles_and_is_exported():
    _, fused = plain_and_fused(lambda model: CASES[0][2](model, "blocks.0.attn.qkv"), True)
    fused.eval().blocks[1].attn.fused_attn = False
    replace(fused, "blocks.0.mlp.fc1", Lora)
    x = images(fused)
    expected = fused(x)
    torch.testing.assert_close(torch.compile(fused, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.export.export(fused, (x,)).module()(x), expected)
