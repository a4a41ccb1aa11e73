"""Every student of the paper is the network its paper defines, with the sizes, rates and groups of the recipe."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lgfast.models import FeatureTaps, create_model, default_layers, tap_shapes
from lgfast.models.taps import find_blocks
from lgfast.optim.build import decays
from tests.models.composition import COMPOSITIONS

DEIT, T2T, T2T14, PIT = "deit_tiny_patch16_224", "t2t_vit_7", "t2t_vit_14", "pit_ti_224"
PVT, PVT2, CONVIT, CVT = "pvt_tiny", "pvt_v2_b0", "convit_tiny", "cvt_13"
STUDENTS = (DEIT, T2T, T2T14, PIT, PVT, PVT2, CONVIT, CVT)
DISTINCT = (DEIT, T2T, PIT, PVT, PVT2, CONVIT, CVT)  # T2T-ViT-14 differs from 7 in its sizes only
CNNS = ("cifar_resnet56", "resnet18")
SHALLOW = {  # with fewer blocks, of every kind that the student has
    DEIT: {"depth": 2},
    T2T: {"depth": 2},
    PIT: {"depth": (1, 1, 1)},
    PVT: {"depths": (1, 1, 1, 2)},
    PVT2: {"depths": (1, 1, 1, 2)},
    CONVIT: {"depth": 3, "local_up_to_layer": 2},
    CVT: {"depths": (1, 1, 2)},
}
TEACHER_CHANNELS = (16, 32, 64)


@pytest.fixture(scope="module")
def paper_model():
    """Models at the paper's size and 100 classes, built once; tests must not change them."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = create_model(name, num_classes=100, image_size=32 if "cifar" in name else 224)
        return built[name]

    return get


def small(name, image_size=64, num_classes=5, **kwargs):
    return create_model(name, num_classes=num_classes, image_size=image_size, **kwargs)


def randomise(model):
    """Moves every trainable number and running statistic off its initial value, so that each one matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


# name: trainable parameters, frozen parameters, persistent buffer values, GMAC
COUNTS = {
    DEIT: (5_543_716, 0, 0, 1.254),
    T2T: (4_024_394, 54_528, 0, 1.147),
    T2T14: (21_119_306, 79_744, 0, 4.783),
    PIT: (4_615_972, 0, 0, 0.699),
    PVT: (12_767_588, 0, 0, 1.933),
    PVT2: (3_435_460, 0, 0, 0.566),
    CONVIT: (5_536_812, 0, 0, 1.252),
    CVT: (19_650_980, 0, 25_767, 4.566),
    "cifar_resnet56": (861_620, 0, 4_313, 0.126),
    "resnet18": (11_227_812, 0, 9_620, 1.814),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name, paper_model):
    model = paper_model(name)
    trainable, frozen, buffers, _ = COUNTS[name]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == frozen
    stored = sum(value.numel() for value in model.state_dict().values())
    assert stored - trainable - frozen == buffers


@pytest.mark.parametrize("name", COUNTS)
def test_multiply_adds(name):
    """Multiply-adds of matrix products, attention and convolutions for one image; norms and additions not counted.

    The recipe's figures are rounded to 0.001. ConViT is counted with timm's attention: ours adds the
    10 products of position weights and values (0.074) and evaluates the position map once a layer.
    """
    size = 32 if "cifar" in name else 224
    # As plain products: torch takes the CPU's fused attention, which is not counted, by the number of threads.
    device = "cpu" if name in (T2T, T2T14) else "meta"  # which has no autocast, as theirs asks for
    with torch.device(device), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model = timm.create_model(name, num_classes=100) if name == CONVIT else small(name, 224, 100)
        model.eval()(torch.zeros(1, 3, size, size))
    assert counter.get_total_flops() / 2e9 == pytest.approx(COUNTS[name][3], abs=0.001)


# name: default taps, shapes at 224, parameters of the three 1x1 projections
TAPS = {
    DEIT: ((0, 6, 11), [(192, 14)] * 3, 21_616),
    T2T: ((0, 3, 6), [(256, 14)] * 3, 28_784),
    T2T14: ((0, 7, 13), [(384, 14)] * 3, 43_120),
    PIT: ((0, 6, 11), [(64, 27), (128, 14), (256, 7)], 21_616),
    PVT: ((0, 3, 7), [(64, 56), (128, 28), (512, 7)], 38_000),
    PVT2: ((0, 3, 7), [(32, 56), (64, 28), (256, 7)], 19_056),
    CONVIT: ((0, 6, 11), [(192, 14)] * 3, 21_616),
    CVT: ((0, 6, 11), [(64, 56), (384, 14), (384, 14)], 38_000),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_taps_and_projection_sizes(name, paper_model):
    model = paper_model(name)
    layers, shapes, num_projection_parameters = TAPS[name]
    assert default_layers(model) == layers
    got = tap_shapes(model, layers, 224)
    assert got == [(channels, (side, side)) for channels, side in shapes]
    pairs = zip(got, TEACHER_CHANNELS, strict=True)
    assert sum((channels + 1) * out for (channels, _), out in pairs) == num_projection_parameters


# name: head bias, head weight, other tensors without decay, other tensors with decay, numbers in the last group
GROUPS = {
    DEIT: (1, 1, 101, 49, 5_455_872),
    T2T: (1, 1, 69, 37, 3_980_864),
    T2T14: (1, 1, 118, 65, 21_028_416),
    PIT: (1, 1, 105, 53, 4_517_248),
    PVT: (1, 1, 109, 50, 12_291_072),
    PVT2: (1, 1, 118, 58, 3_386_720),
    CONVIT: (1, 1, 109, 69, 5_455_992),
    CVT: (1, 1, 220, 120, 19_527_936),
    "cifar_resnet56": (1, 1, 114, 57, 850_864),
}


@pytest.mark.parametrize("name", GROUPS)
def test_weight_decay_groups(name, paper_model):
    """The optimizer's rule, by name and shape, gives the paper's groups for every model."""
    heads, no_decay, decay = [], [], []
    for key, parameter in paper_model(name).named_parameters():
        if not parameter.requires_grad:
            continue
        if key.startswith(("head.", "fc.")):
            heads.append(key.rpartition(".")[2])
        else:
            (decay if decays(key, parameter) else no_decay).append(parameter.numel())
    assert sorted(heads) == ["bias", "weight"]
    assert (1, 1, len(no_decay), len(decay), sum(decay)) == GROUPS[name]


def drop_path_rates(model):
    """Rate of each block; both branches of a block must agree."""
    rates = []
    for block in find_blocks(model):
        found = {getattr(m, "drop_prob", 0.0) for key, m in block.named_children() if key.startswith("drop_path")}
        assert len(found) == 1
        rates.append(found.pop())
    return rates


@pytest.mark.parametrize("name", STUDENTS)
def test_drop_path_rates(name, paper_model):
    depth = len(find_blocks(paper_model(name)))
    expected = [0.1 * i / (depth - 1) for i in range(depth)]
    if name == PIT:
        expected = [0.1 * i / 12 for i in range(12)]
    if name == CVT:
        expected = [0.0] * 3 + [0.1 * i / 9 for i in range(10)]
    assert drop_path_rates(paper_model(name)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", CNNS)
def test_cnns_have_no_drop_path(name, paper_model):
    assert not any(type(m).__name__ == "DropPath" for m in paper_model(name).modules())


@pytest.mark.parametrize("name", STUDENTS)
def test_epsilons(name, paper_model):
    eps = {m.eps for m in paper_model(name).modules() if isinstance(m, nn.LayerNorm)}
    assert eps == {1e-5 if name == CVT else 1e-6}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_forward_equals_the_composition_of_the_paper(name):
    model = randomise(small(name, dtype=torch.float64)).eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    taps = FeatureTaps(model, range(len(find_blocks(model))))
    logits = model(images)
    expected_logits, expected_maps = COMPOSITIONS[name](images, dict(model.state_dict()))
    torch.testing.assert_close(logits, expected_logits, rtol=1e-9, atol=1e-9)
    for (tokens, _), want in zip(taps.take(), expected_maps, strict=True):
        torch.testing.assert_close(tokens, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("image_size", [32, 96])
def test_other_image_sizes(name, image_size):
    shape = SHALLOW.get(name, {"depth": 2})
    model = timm.create_model(name, num_classes=3, drop_path_rate=0.1, **shape, **sized(name, image_size))
    assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 3)


def sized(name, image_size):
    """timm's argument for the input size; PVTv2 takes any size and has none."""
    return {} if name == PVT2 else {"img_size": image_size}


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (T2T, [(1, 37, 256)]),
        (PVT, [(1, 576, 64), (1, 144, 128), (1, 36, 320), (1, 10, 512)]),
        (DEIT, [(1, 37, 192)]),
        (PIT, [(1, 64, 11, 11)]),
        (CONVIT, [(1, 36, 192)]),
    ],
)
def test_position_embeddings_follow_the_image_size(name, shapes):
    model = small(name, image_size=96, **SHALLOW[name])
    assert [tuple(p.shape) for key, p in model.named_parameters() if "pos_embed" in key] == shapes


@pytest.mark.parametrize("name", [T2T, PVT])
def test_wrong_image_size_names_the_fix(name):
    with pytest.raises(ValueError, match=r"images must be \(64, 64\), got \(32, 32\); set img_size"):
        small(name, **SHALLOW[name])(torch.zeros(1, 3, 32, 32))


def test_too_small_images_for_pvt():
    with pytest.raises(ValueError, match=r"img_size must be at least 32, got \(16, 16\)"):
        small(PVT, image_size=16)


@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_forward_and_backward_are_finite(name, dtype):
    model, images = small(name, **SHALLOW[name]), torch.randn(2, 3, 64, 64)
    want = model.eval()(images)
    with torch.autocast("cpu", dtype=dtype):
        logits = model.train()(images)
    logits.float().square().sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(model.eval()(images).float(), want, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", [T2T, PVT, CVT, CONVIT])
def test_half_weights_give_finite_logits(name):
    model, images = small(name, **SHALLOW[name]).eval(), torch.randn(2, 3, 64, 64)
    for dtype in (torch.bfloat16, torch.float16):
        assert copy.deepcopy(model).to(dtype)(images.to(dtype)).isfinite().all()


def test_performer_features_survive_low_precision():
    """At q = k = w_i every feature exponent reaches its bound of 16, where float16 would overflow."""
    layer = small(T2T, **SHALLOW[T2T]).patch_embed.attention1
    k = layer.w[:4].repeat(1, 64, 1)
    v = torch.randn_like(k)
    want = layer.attention(k, k, v)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            got = layer.attention(*(t.to(dtype) for t in (k, k, v)))
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", [*DISTINCT, "cifar_resnet8"])
def test_export_round_trip(name):
    model, images = randomise(small(name, **SHALLOW.get(name, {}))).eval(), torch.randn(2, 3, 64, 64)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))


@pytest.mark.parametrize("name", DISTINCT)
def test_weights_save_and_load(name, tmp_path):
    model, images = randomise(small(name, **SHALLOW[name])).eval(), torch.randn(1, 3, 64, 64)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = small(name, **SHALLOW[name]).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other(images), model(images))


@pytest.mark.parametrize("name", [T2T, PVT, CVT, CONVIT])
def test_compiles_without_graph_breaks(name):
    model, images = small(name, **SHALLOW[name]).eval(), torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))
