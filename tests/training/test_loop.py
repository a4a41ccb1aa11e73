"""A run does what its recipe says, stops when the loss breaks, and falls on a repeated batch."""

import csv
import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lgfast import _extension, train
from lgfast.assembly import run
from lgfast.assembly.device import resolve_device, resolve_precision
from lgfast.assembly.images import describe_splits, load_splits
from lgfast.assembly.loaders import eval_loader
from lgfast.assembly.networks import build_model, load_trained
from lgfast.assembly.run import train_run
from lgfast.config import Config, dump_yaml, load_yaml, replace
from lgfast.data.batch import Batch
from lgfast.evaluate import evaluate_checkpoint
from lgfast.guidance import GuidedStudent
from lgfast.models import create_model
from lgfast.optim.build import build_optimizer
from lgfast.records.checkpoint import CheckpointError, CheckpointStore, read_weights, save_weights
from lgfast.records.files import WriteError
from lgfast.records.result import read_result
from lgfast.step import TrainMeter, TrainStep
from lgfast.training.divergence import NonFiniteLossError
from lgfast.training.evaluation import evaluate
from tests.data.layouts import write_folder
from tests.runs import metrics, small_loop, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One complete guided run, shared by the tests that only look at what it left."""
    torch.set_num_threads(1)
    tmp_path = tmp_path_factory.mktemp("finished")
    config = tiny_config(tmp_path)
    return config, train_run(config)


def test_a_run_leaves_its_files(finished):
    config, result = finished
    run_dir = Path(config.run_dir)
    assert load_yaml(run_dir / "config.yaml") == resolve_precision(config)
    assert json.loads((run_dir / "environment.json").read_text())["torch"] == torch.__version__
    rows = metrics(run_dir)
    assert [row["step"] for row in rows if row["kind"] == "train"] == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [row["epoch"] for row in rows if row["kind"] == "epoch"] == [1, 2, 3]
    with (run_dir / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    assert [row["epoch"] for row in summary] == ["1", "2", "3"]
    assert float(summary[0]["guidance_loss"]) > 0
    assert read_result(run_dir) == result
    assert result.teacher_test_top1 is not None
    assert len(CheckpointStore(run_dir).all()) <= config.log.keep_checkpoints


def test_best_weights_belong_to_the_best_epoch(finished):
    config, result = finished
    run_dir = Path(config.run_dir)
    with (run_dir / "summary.csv").open() as file:
        scores = [float(row["val_top1"] or -1) for row in csv.DictReader(file)]
    assert result.val_top1 == pytest.approx(max(scores))
    assert result.best_epoch == scores.index(max(scores)) + 1
    _, metadata = read_weights(run_dir / "best.safetensors")
    assert metadata["epoch"] == result.best_epoch


def test_evaluate_reproduces_the_reported_accuracy(finished):
    config, result = finished
    best = evaluate_checkpoint(config.run_dir)
    last = evaluate_checkpoint(f"{config.run_dir}/last.safetensors")
    assert (best["top1"], best["top5"]) == (result.test_top1, result.test_top5)
    assert last["top1"] == result.last_test_top1
    assert best["images"] == config.data.test_limit


def test_epochs_are_judged_in_the_precision_that_trains_and_results_in_float32(tmp_path):
    config = tiny_config(tmp_path, **{"precision": "bf16", "epochs": 1, "guidance.weight": 0})
    result = train_run(config)
    (row,) = (row for row in metrics(Path(config.run_dir)) if row["kind"] == "epoch")
    model = load_trained(Path(config.run_dir, "last.safetensors")).model
    loader = eval_loader(config, load_splits(config).select, torch.device("cpu"))
    assert evaluate(model, loader, "cpu", torch.bfloat16)["loss"] == row["val_loss"]
    assert evaluate(model, loader, "cpu")["loss"] != row["val_loss"]
    assert evaluate_checkpoint(config.run_dir)["top1"] == result.test_top1


def test_another_cnn_of_timm_can_teach(finished, tmp_path):
    config, _ = finished
    changes = {"run_dir": str(tmp_path / "run"), "epochs": 1, "teacher.name": "cifar_resnet20"}
    result = train_run(replace(config, changes))
    _, metadata = read_weights(Path(result.teacher_run) / "best.safetensors")
    assert metadata["config"]["model"]["name"] == "cifar_resnet20"


def test_teacher_and_model_of_the_papers_code_are_read(finished, tmp_path):
    config, _ = finished
    path = tmp_path / "model.pyth"
    torch.save({"model_state": pyth_state(10), "test_err": 30.0, "cfg": "MODEL: {IMG_SIZE: 8}"}, path)
    changes = {"run_dir": str(tmp_path / "run"), "epochs": 1, "teacher.checkpoint": str(path)}
    assert train_run(replace(config, changes)).teacher_run == str(path)
    assert evaluate_checkpoint(str(path), dataset="digits")["images"] == 600


def test_teacher_of_the_papers_code_for_other_classes_is_refused(finished, tmp_path):
    config, _ = finished
    path = tmp_path / "model.pyth"
    torch.save({"model_state": pyth_state(7), "test_err": 30.0, "cfg": ""}, path)
    with pytest.raises(CheckpointError, match="was trained for 7 classes, the dataset has 10"):
        train_run(replace(config, {"run_dir": str(tmp_path / "run"), "teacher.checkpoint": str(path)}))


def pyth_state(num_classes):
    """A ResNet-8 under the names of the paper's code."""
    renames = [
        (r"^conv1\.", "stem.conv."), (r"^bn1\.", "stem.bn."), (r"^fc\.", "head.fc."),
        (r"\.conv1\.", ".f.a."), (r"\.bn1\.", ".f.a_bn."), (r"\.conv2\.", ".f.b."), (r"\.bn2\.", ".f.b_bn."),
        (r"\.downsample\.0\.", ".proj."), (r"\.downsample\.1\.", ".bn."), (r"^layer(\d)\.0\.", r"s\1.b1."),
    ]  # fmt: skip
    state = {}
    for key, value in create_model("cifar_resnet8", num_classes).state_dict().items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    return state


def test_teacher_is_trained_once(finished):
    config, result = finished
    again = train_run(replace(config, {"run_dir": config.run_dir + "-again", "epochs": 1}))
    assert again.teacher_run == result.teacher_run


def test_run_folder_is_not_overwritten(finished, tmp_path):
    config, _ = finished
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        train_run(replace(config, {"teacher.cache": str(tmp_path / "cache")}))
    assert not (tmp_path / "cache").exists()  # no teacher was trained before


@pytest.mark.parametrize(("place", "reason"), [("file/run", "Not a directory"), ("dangling/run", "No such file")])
def test_a_run_folder_that_cannot_be_written_is_refused_before_its_teacher_is_trained(tmp_path, place, reason):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    run_dir = tmp_path / place
    with pytest.raises(ValueError, match=f"run_dir: cannot write {run_dir}: {run_dir.parent}: {reason}.*; name a fold"):
        train_run(tiny_config(tmp_path, run_dir=str(run_dir)))
    assert not (tmp_path / "cache").exists()


def test_a_run_that_cannot_begin_leaves_no_folder(finished, tmp_path):
    config, result = finished
    places = {"run_dir": str(tmp_path / "x"), "teacher.checkpoint": result.teacher_run}
    with pytest.raises(ValueError, match=r"optim\.name: unknown optimizer 'adamx'"):
        train_run(replace(config, places | {"optim.name": "adamx"}))
    assert not (tmp_path / "x").exists()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="unknown optimizer"):
        train_run(replace(config, places | {"optim.name": "adamx"}))
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["notes.txt"]


UNGUIDED = {"guidance.weight": 0, "augment.teacher_size": 0}


@pytest.mark.parametrize(("step", "is_kept"), [(1, False), (2, False), (3, True)])
def test_a_run_that_ends_with_nothing_to_go_on_from_leaves_no_folder(tmp_path, monkeypatch, step, is_kept):
    """A line of the log is written every two steps. The corrected command is the same one with other settings."""
    config, run_batch = tiny_config(tmp_path, **UNGUIDED), TrainStep.run

    def fail(self, batch):
        if int(self.meter.step) + 1 == step:
            raise RuntimeError("out of order")
        run_batch(self, batch)

    monkeypatch.setattr(TrainStep, "run", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        train_run(config)
    assert (tmp_path / "run").exists() is is_kept
    monkeypatch.undo()
    if not is_kept:
        train_run(replace(config, {"epochs": 1}))


def test_a_full_disk_leaves_a_run_to_go_on_with(tmp_path, monkeypatch):
    def fail(*_):
        raise WriteError("could not write metrics.jsonl: No space left on device")

    monkeypatch.setattr("lgfast.records.run_log.append", fail)
    config = tiny_config(tmp_path, **UNGUIDED)
    with pytest.raises(WriteError, match=r"continue with: python -m lgfast\.train --resume"):
        train_run(config)
    monkeypatch.undo()
    assert train_run(config, resume=True).best_epoch > 0


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"guidance.weight": 1e38}, r"lower guidance\.weight, 1e\+38$"),
        (UNGUIDED | {"optim.weight_decay": 1e30}, r"lower optim\.weight_decay, 1e\+30: a step multiplies weights by"),
        (UNGUIDED | {"optim.lr": 1e38, "optim.weight_decay": 0}, r"lower optim\.lr, set optim\.clip_norm"),
        (UNGUIDED | {"optim.lr": 1e38, "optim.weight_decay": 0, "optim.name": "sgd"}, r"lower optim\.lr"),
    ],
)
def test_a_broken_loss_names_the_key_that_broke_it(finished, tmp_path, changes, fix):
    places = {"run_dir": str(tmp_path / "run"), "teacher.checkpoint": finished[1].teacher_run}
    with pytest.raises(NonFiniteLossError, match=fix):
        train_run(replace(finished[0], places | changes))
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_teacher_of_other_classes_is_refused(finished, tmp_path):
    config, result = finished
    path = tmp_path / "other.safetensors"
    _, metadata = read_weights(Path(result.teacher_run) / "best.safetensors")
    save_weights(path, create_model("cifar_resnet8", 3).state_dict(), metadata | {"class_names": ["cat", "dog", "owl"]})
    with pytest.raises(CheckpointError, match=r"was trained for 3 classes \(cat, dog, owl.*dataset has 10"):
        train_run(replace(config, {"run_dir": str(tmp_path / "x"), "teacher.checkpoint": str(path)}))


def test_evaluating_on_another_class_count_is_refused(finished, tmp_path):
    config, _ = finished
    weights = tmp_path / "w.safetensors"
    _, metadata = read_weights(Path(config.run_dir) / "best.safetensors")
    save_weights(weights, build_model(config, 3).state_dict(), metadata | {"class_names": ["a", "b", "c"]})
    with pytest.raises(CheckpointError, match=r"was trained for 3 classes, digits in .* has 10"):
        evaluate_checkpoint(str(weights))


@pytest.mark.parametrize(
    "header", [{}, [1], {"config": {}}, {"config": [], "class_names": ["a"]}, {"config": {}, "class_names": "ab"}]
)
def test_weights_without_a_whole_header_are_refused(tmp_path, header):
    path = tmp_path / "w.safetensors"
    save_weights(path, create_model("cifar_resnet8", 2).state_dict(), header)
    with pytest.raises(CheckpointError, match=r"w\.safetensors has no header of lgfast with its configuration"):
        load_trained(path)


def test_a_header_of_another_version_names_its_key(tmp_path):
    path = tmp_path / "w.safetensors"
    header = {"config": {"optim": {"speed": 1}}, "class_names": ["a", "b"]}
    save_weights(path, create_model("cifar_resnet8", 2).state_dict(), header)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: .* unknown configuration key 'optim\.speed'"):
        load_trained(path)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"eval.protocol": "paper", "epochs": 2, "optim.lr": 1e-30}, 1),  # the last was just tested, the first is best
        ({"eval.protocol": "holdout", "epochs": 2, "optim.lr": 1e-30}, 2),
        ({"eval.protocol": "paper", "epochs": 1}, 1),  # the last is the best
        ({"eval.protocol": "holdout", "epochs": 1}, 1),
        ({"eval.protocol": "paper", "epochs": 2, "optim.lr": 1e-30, "precision": "bf16"}, 2),  # selected in bfloat16
    ],
)
def test_the_test_images_are_not_judged_twice_by_the_same_weights(tmp_path, monkeypatch, changes, passes):
    calls = []
    for name in ("evaluate", "evaluate_logits"):
        real = getattr(run, name)
        monkeypatch.setattr(run, name, lambda *a, real=real: calls.append(real) or real(*a))
    config = tiny_config(tmp_path, **{"guidance.weight": 0, "eval.every_epochs": 1} | changes)
    result = train_run(config)
    assert len(calls) == passes
    assert result.best_epoch == 1
    assert result.test_top1 == evaluate_checkpoint(config.run_dir)["top1"]
    assert result.last_test_top1 == evaluate_checkpoint(f"{config.run_dir}/last.safetensors")["top1"]


def test_loss_falls_on_one_repeated_batch():
    torch.manual_seed(0)
    student = GuidedStudent(
        create_model("deit_tiny_patch16_224", 10, image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2)
    )
    optim = replace(Config(), {"optim.lr": 3e-3}).optim
    meter = TrainMeter("cpu")
    step = TrainStep(student, None, build_optimizer(student.named_parameters(), optim), meter)
    batch = Batch(torch.randn(16, 3, 16, 16), None, torch.randint(10, (16,)), torch.arange(16))
    losses = []
    for _ in range(60):
        step(batch)
        losses.append(meter.read(TrainMeter.WINDOW)["loss"])
        meter.reset(TrainMeter.WINDOW)
    assert losses[-1] < 0.3 * losses[0]


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    config = tiny_config(tmp_path, **{"guidance.weight": 0, "augment.teacher_size": 0, "eval.every_epochs": 1})
    loop = small_loop(config)
    (lane,) = loop.lanes
    plain_step = lane.step.run

    def poisoned(batch):
        images = batch.images * (float("nan") if lane.progress.step == 8 else 1)
        plain_step(batch._replace(images=images))

    lane.step.run = poisoned
    loop.run()
    assert lane.status == "failed"
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 8 \(learning rate [0-9.e-]+\).*step_00000006"):
        lane.raise_error()
    weights, state = CheckpointStore(tmp_path / "run").load_newest()
    assert state["progress"]["step"] == 6
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_checkpoints_leave_time_between_them(tmp_path):
    config = tiny_config(tmp_path, **{"guidance.weight": 0, "log.save_every_s": 3600})
    loop, run_dir, seen = small_loop(config), Path(config.run_dir), []
    (lane,) = loop.lanes
    lane.log.write_epoch = lambda row: seen.append(sorted(path.name for path in run_dir.rglob("*.safetensors")))
    loop.run()
    assert seen == [[], [], []]  # nothing is written before the end of the last epoch, not even the best weights
    assert lane.saver.store.all() == [lane.saver.store.path(lane.progress.step)]
    _, metadata = read_weights(run_dir / "best.safetensors")
    assert metadata["epoch"] == lane.progress.best_epoch


def test_batch_larger_than_the_dataset_is_refused(tmp_path):
    config = tiny_config(tmp_path, **{"data.batch_size": 1000, "guidance.weight": 0})
    with pytest.raises(ValueError, match=r"data.batch_size: 1000 is more than the 96 training images"):
        train_run(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("device", "gpu", r"device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("device", "meta", r"device: expected auto, cpu, cuda or cuda:N, got 'meta'"),
        ("teacher.stages", "0 1 9", r"teacher.stages: a stage must lie in \[-3, 2\], got 9"),
        ("guidance.student_layers", "0 1 3", r"guidance.student_layers: .* has 3 blocks: .* \[-3, 2\], got 3; --set"),
        ("model.embed_dim", 33, r"dim should be divisible by num_heads \(asked for: .*model.embed_dim=33.*\)"),
        ("model.name", "cifar_resnet8", r"cifar_resnet8: .*'patch_size' \(asked for: model.patch_size=2.*=none"),
    ],
)
def test_impossible_values_name_their_key(finished, tmp_path, key, value, message):
    config, result = finished
    places = {"run_dir": str(tmp_path / "x"), "teacher.checkpoint": result.teacher_run}
    with pytest.raises(ValueError, match=message):
        train_run(replace(config, places | {key: value}))


@pytest.mark.parametrize(("device", "rank", "chosen"), [("cuda:1", None, 1), ("auto", "1", 1), ("cuda", "2", None)])
def test_a_rank_takes_the_gpu_of_its_number_and_misses_one_that_is_not_there(monkeypatch, device, rank, chosen):
    set_to = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    h200 = SimpleNamespace(major=9, minor=0, shared_memory_per_block_optin=227 << 10)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: h200)
    monkeypatch.setattr(torch.cuda, "set_device", set_to.append)
    if rank is not None:
        for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "3", "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
    if chosen is None:
        with pytest.raises(ValueError, match="device: cuda:2 was asked for, but torch sees 2 CUDA devices"):
            resolve_device(device)
    else:
        assert resolve_device(device) == torch.device("cuda", chosen)
        assert set_to == [torch.device("cuda", chosen)]


def test_running_out_of_memory_ends_the_command_with_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("lgfast.assembly.run.train_run", fail)
    assert train.main([]) == 2
    assert "error: CUDA out of memory. Tried to allocate 2.00 GiB.\nlower data.batch_size" in capsys.readouterr().err


@pytest.mark.skipif(not _extension.has_native(), reason="the limit is the native kernel's")
def test_too_large_an_image_ends_the_commands_with_a_message(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path, train=5)
    tall = Image.new("RGB", (2, 2000))
    for path in (tmp_path / "train").rglob("*.png"):
        tall.save(path)
    config = tiny_config(tmp_path, **{"data.dataset": "folder", "data.root": str(tmp_path), "data.batch_size": 2})
    changes = {"guidance.weight": 0, "augment.crop_scale": "1 1", "augment.crop_ratio": "0.001 1"}
    (tmp_path / "config.yaml").write_text(dump_yaml(replace(config, changes)))
    assert train.main(["--config", "config.yaml"]) == 2
    message = r"^error: .*/train/cat/0.png: 2000x2 pixels are too many to make views of, .*data.stored_side"
    assert re.search(message, capsys.readouterr().err, flags=re.MULTILINE)


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_classes_without_images_are_named(tmp_path, monkeypatch, loader):
    monkeypatch.setattr("lgfast.assembly.images.require_dali", lambda: None)
    whole, lacking = tmp_path / "whole", tmp_path / "lacking"
    for root in (whole, lacking):
        write_folder(root, train=5)
    for name in ("ant", "bee", "cow", "emu"):
        (lacking / "train" / name).mkdir()
    config = tiny_config(tmp_path, **{"data.dataset": "folder", "data.root": str(whole), "data.loader": loader})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_splits(config).train) == 8
    config = replace(config, {"data.root": str(lacking)})
    with pytest.raises(ValueError, match=r"data.root: 4 class folders .* have no image .*\(ant; bee; cow; \.\.\."):
        load_splits(config)
    for name in ("ant", "bee", "cow", "emu"):
        shutil.copy(lacking / "train" / "cat" / "0.png", lacking / "train" / name)
    with (
        pytest.warns(UserWarning, match=r"test: 4 classes without a test image: ant; bee; cow; \.\.\."),
        pytest.warns(UserWarning, match=r"train: \d classes without a training image"),  # all in the holdout
    ):
        load_splits(config)


def test_a_teacher_that_cannot_be_trained_is_named(tmp_path):
    config = tiny_config(tmp_path)
    with open(config.teacher.recipe, "a") as recipe:
        recipe.write("data: {batch_size: 1000}\n")
    message = r"teacher.recipe: .*teacher.yaml cannot be trained: data.batch_size: 1000 is more than the 96 training"
    with pytest.raises(ValueError, match=message):
        train_run(config)


def test_a_run_says_which_images_do_what(tmp_path, capsys):
    """The recipe's limits are named: another dataset would lose images to them unseen."""
    train_run(tiny_config(tmp_path, **{"max_steps": 1, "data.test_limit": 0}))
    line = "digits: 96 images of 10 classes to train on, 600 to test, 24 choose the epoch"
    assert capsys.readouterr().out.splitlines()[0] == f"{line} (limited by data.train_limit=120; 0: all)"
    config = tiny_config(tmp_path, **{"eval.protocol": "paper", "data.train_limit": 0})
    line = "digits: 1197 images of 10 classes to train on, 60 to test, they choose the epoch"
    assert describe_splits(config, load_splits(config)) == f"{line} (limited by data.test_limit=60; 0: all)"


def test_max_steps_ends_the_run(tmp_path):
    result = train_run(tiny_config(tmp_path, **{"max_steps": 8, "guidance.weight": 0}))
    assert result.best_epoch == 2
    assert max(row["step"] for row in metrics(tmp_path / "run")) == 8


def test_patience_ends_a_run_after_an_epoch_that_is_judged(tmp_path):
    """With an evaluation in two epochs, one without is no reason."""
    config = tiny_config(tmp_path, epochs=9, **{"guidance.weight": 0, "eval.patience": 1, "eval.every_epochs": 2})
    lane = small_loop(config).lanes[0]
    ends = []
    for epoch in range(1, 7):
        lane.progress.epoch, lane.progress.best_epoch = epoch, 2 if epoch < 4 else 4
        ends.append(lane.is_finished)
    assert ends == [False] * 5 + [True]


def test_a_run_ends_when_its_patience_is_over(tmp_path):
    """The learning rate is 0 after the first epoch, so the second is no better."""
    config = tiny_config(
        tmp_path,
        epochs=9,
        **{"guidance.weight": 0, "eval.patience": 2, "eval.every_epochs": 1, "optim.lr": 1e-12, "optim.min_lr": 0},
    )
    result = train_run(config)
    rows = [row for row in metrics(tmp_path / "run") if "epoch" in row]
    assert len(rows) == result.best_epoch + 2 < 9
    assert (tmp_path / "run" / "last.safetensors").is_file()
