"""Checkpoints of the paper's code load by name into the models, or say why not."""

import random
import re

import pytest
import torch

from lgfast.models import create_model
from lgfast.models.pycls_weights import convert_pycls, load_pycls, model_from_pycls, pycls_image_size, read_pycls
from tests.damage import damaged
from tests.models.pycls_files import NAMES, architecture_of, pyth_state, resnet_names, save


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_papers_code_finds_its_place(name, tmp_path):
    model = create_model(name, num_classes=4, image_size=32)
    state = pyth_state(model, NAMES[name])
    save(tmp_path / "model.pyth", state)
    checkpoint = load_pycls(model, tmp_path / "model.pyth")
    assert (checkpoint.num_classes, checkpoint.test_err, checkpoint.config) == (4, 21.5, "MODEL: {}")
    loaded = model.state_dict()
    for old, new in zip(state, convert_pycls(dict(zip(state, state, strict=True)), name), strict=True):
        assert torch.equal(loaded[new], state[old]), (old, new)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_builds_its_own_model(name, tmp_path):
    image_size = 64 if name == "deit_tiny_patch16_224" else 224
    config = "MODEL: {IMG_SIZE: 64}" if image_size == 64 else "MODEL: {TYPE: x}"
    original = create_model(name, num_classes=4, image_size=image_size)
    save(tmp_path / "model.pyth", pyth_state(original, NAMES[name]), cfg=config)
    model, checkpoint = model_from_pycls(tmp_path / "model.pyth")
    assert architecture_of(model) == name
    assert not model.training
    assert model.num_classes == checkpoint.num_classes == 4


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    save(tmp_path / "x.pyth", {"head.weight": torch.zeros(4, 8)})
    with pytest.raises(ValueError, match="of no model that lgfast knows"):
        model_from_pycls(tmp_path / "x.pyth")
    save(tmp_path / "x.pyth", {})
    with pytest.raises(ValueError, match="of no model"):
        model_from_pycls(tmp_path / "x.pyth")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("deit_tiny_patch16_224", "layers.11.attn.qkv_transform.bias", "blocks.11.attn.qkv.bias"),
        ("t2t_vit_7", "t2t_module.attention.1.attn.qkv_transform.weight", "patch_embed.attention2.kqv.weight"),
        ("t2t_vit_7", "layers.6.attn.projection.bias", "blocks.6.attn.proj.bias"),
        ("pit_ti_224", "pools.1.fc.weight", "transformers.2.pool.fc.weight"),
        ("pvt_tiny", "pos_embed4", "stages.3.pos_embed"),
        ("pvt_v2_b0", "patch_embed3.norm.bias", "stages.2.downsample.norm.bias"),
        ("cvt_13", "stage1.blocks.0.attn.conv_proj_k.bn.running_var", "stages.1.blocks.0.attn.conv_k.bn.running_var"),
        ("cvt_13", "stage1.blocks.0.attn.proj.weight", "stages.1.blocks.0.attn.proj.weight"),
        ("cifar_resnet56", "s2.b1.bn.weight", "layer2.0.downsample.1.weight"),
        ("cifar_resnet56", "s3.b9.f.b_bn.bias", "layer3.8.bn2.bias"),
    ],
)
def test_names_map_one_by_one(name, old, new):
    assert list(convert_pycls({old: None}, name)) == [new]


@pytest.fixture
def resnet():
    return create_model("cifar_resnet8", num_classes=4, image_size=32)


def test_misfits_are_named_and_change_nothing(resnet, tmp_path):
    before = {key: value.clone() for key, value in resnet.state_dict().items()}
    state = pyth_state(resnet, list(resnet_names(3, 1)))
    state["head.fc.weight"] = torch.zeros(9, 64)
    del state["stem.conv.weight"]
    state["head.fc.scale"] = torch.zeros(1)
    save(tmp_path / "x.pyth", state)
    expected = "fc.weight is [9, 64], expected [4, 64]; conv1.weight is missing; fc.scale is unknown"
    with pytest.raises(ValueError, match=f"does not fit cifar_resnet8: {re.escape(expected)}"):
        load_pycls(resnet, tmp_path / "x.pyth")
    assert all(torch.equal(value, before[key]) for key, value in resnet.state_dict().items())


def test_another_depth_is_refused(resnet, tmp_path):
    deeper = create_model("cifar_resnet20", num_classes=4, image_size=32)
    save(tmp_path / "x.pyth", pyth_state(deeper, list(resnet_names(3, 3))))
    with pytest.raises(ValueError, match=r"layer1.1.conv1.weight is unknown; .* and \d+ more"):
        load_pycls(resnet, tmp_path / "x.pyth")


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "x.pyth"
    with pytest.raises(FileNotFoundError):
        read_pycls(path)
    path.touch()
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        read_pycls(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        read_pycls(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="a dict with the key 'model_state'"):
        read_pycls(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        read_pycls(path)


class Payload:
    def __reduce__(self):
        return (print, ("code from the checkpoint ran",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_state": [1]}, "model_state: expected a state dict, got list"),
        ({"model_state": {"head.weight": 1}}, "model_state: expected tensors by name, got 'head.weight': int"),
        ({"model_state": {1: torch.zeros(1)}}, "model_state: expected tensors by name, got 1: Tensor"),
        ({"cfg": {"MODEL": 1}}, "cfg: expected a configuration as text, got dict"),
        ({"test_err": "low"}, "test_err: expected a number, got str"),
        (
            {"model_state": {"head.weight": torch.zeros(2, 2).to_sparse()}},
            "model_state: head.weight is quantized",
        ),
        (
            {"model_state": {"head.weight": torch.quantize_per_tensor(torch.zeros(2, 2), 1.0, 0, torch.qint8)}},
            "model_state: head.weight is quantized",
        ),
    ],
)
def test_damaged_entries_are_named(tmp_path, change, message):
    path = tmp_path / "x.pyth"
    save(path, {"head.weight": torch.zeros(2, 2)}, **change)
    with pytest.raises(ValueError, match=rf"x\.pyth: {message}"):
        read_pycls(path)


@pytest.mark.parametrize("cfg", ["MODEL: [", "[1]", "MODEL: 3", "MODEL: {IMG_SIZE: big}", "MODEL: {IMG_SIZE: -1}"])
def test_a_damaged_configuration_in_the_file_is_named(tmp_path, cfg):
    names = list(resnet_names(3, 1))
    save(tmp_path / "x.pyth", pyth_state(create_model("cifar_resnet8", num_classes=4), names), cfg=cfg)
    with pytest.raises(ValueError, match=r"x\.pyth: pycls checkpoint: (cfg is no|MODEL\.IMG_SIZE: expected)"):
        model_from_pycls(tmp_path / "x.pyth")


@pytest.mark.parametrize(("text", "size"), [("", 32), ("MODEL: {TYPE: ResNet}", 224), ("MODEL: {IMG_SIZE: 64}", 64)])
def test_the_size_is_the_default_of_the_papers_code_where_the_file_is_silent(text, size):
    assert pycls_image_size(text, "cifar_resnet56") == size


@pytest.mark.parametrize(
    ("errors", "which", "taken"),
    [
        ({}, "best", "model"),
        ({"ema_err": 100.0}, "best", "model"),  # what its code writes where there is no moving average
        ({"ema_err": 21.5}, "best", "model"),
        ({"ema_err": 20.0}, "best", "ema"),
        ({"ema_err": 20.0}, "model", "model"),
        ({"ema_err": 90.0}, "ema", "ema"),
    ],
)
def test_the_weights_are_those_that_the_test_mode_of_the_papers_code_takes(resnet, tmp_path, errors, which, taken):
    states = {name: pyth_state(resnet, list(resnet_names(3, 1))) for name in ("model", "ema")}
    save(tmp_path / "x.pyth", states["model"], ema_state=states["ema"], test_err=21.5, **errors)
    checkpoint = load_pycls(resnet, tmp_path / "x.pyth", which)
    assert checkpoint.weights == taken
    assert torch.equal(resnet.fc.weight, states[taken]["head.fc.weight"])


def test_a_moving_average_that_is_not_there_is_refused(resnet, tmp_path):
    save(tmp_path / "x.pyth", pyth_state(resnet, list(resnet_names(3, 1))))
    with pytest.raises(ValueError, match=r"x\.pyth: holds no moving average \(ema_state\); .* \(--weights model\)$"):
        load_pycls(resnet, tmp_path / "x.pyth", "ema")


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    save(tmp_path / "x.pyth", {}, extra=Payload())
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        read_pycls(tmp_path / "x.pyth")
    assert "ran" not in capsys.readouterr().out


def test_models_the_paper_does_not_have():
    with pytest.raises(ValueError, match=r"the paper's code has no vit_small_patch16_224; its models are deit_tiny"):
        convert_pycls({}, "vit_small_patch16_224")


def test_a_damaged_file_is_never_taken_for_another(tmp_path):
    state = pyth_state(create_model("cifar_resnet8", num_classes=4), list(resnet_names(3, 1)))
    save(tmp_path / "model.pyth", state)
    content, generator = (tmp_path / "model.pyth").read_bytes(), random.Random(0)
    expected, refused = read_pycls(tmp_path / "model.pyth"), 0
    for _ in range(150):
        (tmp_path / "model.pyth").write_bytes(damaged(content, generator))
        try:
            found = read_pycls(tmp_path / "model.pyth")
        except ValueError:
            refused += 1
            continue
        assert (found.config, found.test_err) == (expected.config, expected.test_err)
        torch.testing.assert_close(found.state, expected.state, rtol=0, atol=0)
    assert refused > 100
