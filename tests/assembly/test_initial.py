"""What a run starts from, what it leaves untrained, and how fast its layers learn."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lgfast.assembly import initial
from lgfast.assembly.run import train_run
from lgfast.config import replace
from lgfast.records.checkpoint import save_weights
from lgfast.runtime.interrupt import Interrupted
from lgfast.train import main
from tests.runs import StopAt, small_loop, tiny_config

UNGUIDED = {"guidance.weight": 0, "epochs": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of a three-block student on digits."""
    folder = tmp_path_factory.mktemp("source")
    train_run(tiny_config(folder, **UNGUIDED))
    return folder / "run"


def first_weights(config):
    return small_loop(config).lanes[0].step.model.state_dict()


def test_a_run_starts_from_the_best_epoch_of_another(source, tmp_path, capsys):
    weights = first_weights(tiny_config(tmp_path, **UNGUIDED, **{"model.init_from": str(source), "seed": 5}))
    best = load_file(source / "best.safetensors")
    assert weights.keys() == best.keys() and all(torch.equal(weights[name], best[name]) for name in best)
    assert f"starts from {source}: every tensor as it is" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_another_program_is_read(source, tmp_path, suffix):
    best, path = load_file(source / "best.safetensors"), tmp_path / f"weights{suffix}"
    save_file(best, path) if suffix == ".safetensors" else torch.save({"state_dict": best}, path)
    weights = first_weights(tiny_config(tmp_path, **UNGUIDED, **{"model.init_from": str(path), "seed": 5}))
    assert all(torch.equal(weights[name], best[name]) for name in best)


def test_the_head_of_other_class_names_is_not_taken(source, tmp_path, capsys):
    config = tiny_config(tmp_path, **UNGUIDED, **{"model.init_from": str(source), "seed": 5})
    model = small_loop(replace(config, {"model.init_from": "", "run_dir": str(tmp_path / "b")})).lanes[0].step.model
    head = model.head.weight.clone()
    said = initial.start_model(model, config, [f"other {i}" for i in range(10)])
    assert said.endswith(": a new head") and torch.equal(model.head.weight, head)


def test_it_continues_to_the_same_bits_without_the_file_it_started_from(source, tmp_path):
    path = tmp_path / "start.safetensors"
    path.write_bytes((source / "best.safetensors").read_bytes())
    changes = {
        "model.init_from": str(path), "optim.layer_decay": 0.5, "optim.freeze": "blocks:1", "log.save_every_steps": 1,
    }  # fmt: skip
    train_run(tiny_config(tmp_path, run_dir=str(tmp_path / "whole"), **changes))
    config = tiny_config(tmp_path, **changes)
    with pytest.raises(Interrupted):
        train_run(config, interrupt=StopAt(7))
    path.unlink()
    train_run(config, resume=True)
    whole, continued = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "run"))
    assert whole.keys() == continued.keys() and all(torch.equal(whole[name], continued[name]) for name in whole)
    start = load_file(source / "best.safetensors")
    is_kept = {name: torch.equal(start[name], whole[name]) for name in start}
    frozen = ("cls_token", "pos_embed", "patch_embed.", "blocks.0.")
    assert all(kept == name.startswith(frozen) for name, kept in is_kept.items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_every_layer_has_its_own_rate(tmp_path, optimizer):
    config = tiny_config(tmp_path, **UNGUIDED, **{"optim.layer_decay": 0.5, "optim.name": optimizer})
    loop = small_loop(config)
    loop.run()
    lane = loop.lanes[0]
    names = {id(p): name for name, p in lane.step.student.named_parameters()}
    rates = {names[id(p)]: float(group["lr"]) for group in lane.step.optimizer.param_groups for p in group["params"]}
    assert rates["model.head.weight"] == pytest.approx(lane.lr)
    assert [rates[f"model.blocks.{i}.mlp.fc1.weight"] / lane.lr for i in range(3)] == pytest.approx(
        [1 / 8, 1 / 4, 1 / 2]
    )
    assert rates["model.pos_embed"] / lane.lr == pytest.approx(1 / 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.init_from": "nowhere"}, "model.init_from: no checkpoint at nowhere"),
        ({"model.init_from": "damaged.pth"}, "model.init_from: damaged.pth is no state dict that torch wrote"),
        (
            {"model.init_from": "headed.safetensors"},
            r"model.init_from: headed.safetensors: no tensor 'cls_token', which",
        ),
        ({"model.init_from": "small.safetensors"}, r"model.init_from: small.safetensors: no tensor 'cls_token', which"),
        ({"model.pretrained": "true", "model.init": "mimetic"}, "model.init_from: a model starts in one way"),
        ({"optim.freeze": "blocks:4"}, "optim.freeze: deit_tiny_patch16_224 has 3 blocks, got blocks:4"),
        ({"optim.layer_decay": "0.5", "optim.name": "muon"}, "optim.layer_decay: muon gives all blocks one rate"),
    ],
)
def test_what_cannot_be_is_said_in_a_line_and_leaves_no_run(tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.pth").write_bytes(b"no pickle")
    save_file({"weight": torch.zeros(2)}, tmp_path / "small.safetensors")
    save_weights(tmp_path / "headed.safetensors", {"weight": torch.zeros(2)}, {"class_names": 5})
    config = {
        "data.train_limit": 120,
        "model.depth": 3,
        "guidance.weight": 0,
        "run_dir": "run",
        "device": "cpu",
    } | changes
    words = [word for key, value in config.items() for word in ("--set", f"{key}={value}")]
    assert main(["--recipe", "digits-base", *words]) == 2
    errors = capsys.readouterr().err
    assert message.replace("\\", "") in errors and errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_without_a_network_the_hub_is_asked_once_and_the_file_is_named(tmp_path, monkeypatch):
    asked = []

    def unreachable(url, timeout):
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("timm.create_model", pytest.fail)
    with pytest.raises(
        ValueError,
        match=r"model.pretrained: .*: model.safetensors of timm/test_vit.r160_in1k is not in the cache, and the hub "
        r"does not give it \(no network\);.*HF_HOME.*model.init_from=FILE",
    ):
        initial.pretrained_weights("test_vit")
    assert len(asked) == 1 and asked[0].endswith("/timm/test_vit.r160_in1k/resolve/main/model.safetensors")


def test_weights_in_the_hubs_cache_need_no_network(tmp_path, monkeypatch):
    import timm

    weights = timm.create_model("test_vit").state_dict()
    folder = tmp_path / "models--timm--test_vit.r160_in1k"
    (folder / "snapshots" / "5").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("5")
    save_file(weights, folder / "snapshots" / "5" / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("huggingface_hub.get_hf_file_metadata", "timm.models._hub.hf_hub_download"):
        monkeypatch.setattr(name, pytest.fail)
    found = initial.pretrained_weights("test_vit")
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in found)


def test_a_model_without_trained_weights_says_so():
    with pytest.raises(ValueError, match=r"model.pretrained: timm has no trained weights of t2t_vit_7; use"):
        initial.pretrained_weights("t2t_vit_7")


def test_timms_trained_weights_are_fitted_to_the_images(tmp_path, monkeypatch):
    """With a stand-in for the hub: a model of 1,000 classes at 224."""
    import timm

    create = timm.create_model

    def from_hub(name, **options):
        torch.manual_seed(9)
        return create(name, depth=3, embed_dim=32, num_heads=1)

    monkeypatch.setattr("lgfast.models.initial_weights.hub_file", lambda stated: {})
    monkeypatch.setattr("lgfast.models.initial_weights.timm.create_model", from_hub)
    weights = initial.pretrained_weights("deit_tiny_patch16_224")
    monkeypatch.undo()
    config = tiny_config(tmp_path, **UNGUIDED, **{"model.patch_size": 2, "model.num_heads": 1})
    model = small_loop(config).lanes[0].step.model
    start = initial.start_from(model, weights)
    assert start.new == ("head.bias", "head.weight") and set(start.resized) == {"pos_embed", "patch_embed.proj.weight"}
    assert torch.equal(model.blocks[2].mlp.fc1.weight, weights["blocks.2.mlp.fc1.weight"])
