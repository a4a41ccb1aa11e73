"""Images of several classes, from the table to predictions: scikit-learn's figures, and what is refused by its key."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics

import lgfast
from lgfast.assembly.networks import load_trained
from lgfast.config import load_recipe, replace
from lgfast.data import load_dataset, split_holdout
from lgfast.data.folds import fold_numbers
from lgfast.data.image_set import ImageSet
from lgfast.evaluate import evaluate_checkpoint
from lgfast.evaluate import main as evaluate
from lgfast.inference.folds import MeanNetwork
from lgfast.inference.model_card import model_card
from lgfast.ops.mix import mix_labels
from lgfast.predict import main as predict
from lgfast.records.answers import Answers, read_answers
from lgfast.records.result import read_result
from lgfast.reports.scores import class_rows, mistakes, scores
from lgfast.step.losses import Objective
from lgfast.step.meters import EvalMeter, TrainMeter
from lgfast.step.scores import average_precision
from lgfast.train import main as train

SMALL = {
    "guidance.weight": 0.5, "augment.image_size": 16, "augment.teacher_size": 8, "augment.rand_augment": "",
    "augment.mixup_alpha": 0.2, "model.embed_dim": 32, "model.depth": 3, "model.num_heads": 2,
    "guidance.student_layers": "0,1,2", "data.batch_size": 8, "epochs": 12, "eval.every_epochs": 4,
    "eval.metric": "map", "data.labels": "labels.csv", "data.label_separator": "|", "log.tensorboard": "false",
    "device": "cpu", "precision": "fp32",
}  # fmt: skip
CLASSES = ("blue", "green", "red")  # a class is a channel that is bright


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """96 pictures of every combination of bright channels, none included."""
    root = tmp_path_factory.mktemp("bright")
    random, rows = np.random.default_rng(0), []
    for i in range(96):
        there = [bool(i >> bit & 1) for bit in range(3)]  # blue, green, red
        pixels = random.integers(0, 60, (20, 20, 3)) + 180 * np.array(there[::-1])
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
        rows.append((f"{i}.png", " | ".join(name for name, is_there in zip(CLASSES, there, strict=True) if is_there)))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    return root


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    teacher = folder / "teacher.yaml"
    teacher.write_text("base: photos-resnet8\nname: teacher\nepochs: 4\ndata: {batch_size: 8}\n")
    changes = SMALL | {"data.root": pictures, "run_dir": folder / "run", "teacher.cache": folder / "cache"}
    words = [text for key, value in changes.items() for text in ("--set", f"{key}={value}")]
    assert train(["--recipe", "photos", *words, "--teacher.recipe", str(teacher)]) == 0
    return folder / "run"


@pytest.fixture
def answers():
    """Of 200 images and 6 classes, one of which has no image; some logits of a class are equal."""
    random = np.random.default_rng(1)
    labels = random.random((200, 6)) < (0.5, 0.3, 0.2, 0.1, 0.05, 0)
    logits = random.normal(size=(200, 6)) + 1.5 * labels
    return Answers((logits.round(1) + np.arange(6) / 100).astype(np.float32), labels, tuple("abcdef"))


def test_the_table_gives_label_sets(pictures):
    train_part, test_part = (
        load_dataset("folder", pictures, split, labels="labels.csv", label_separator="|") for split in ("train", "test")
    )
    assert train_part.class_names == CLASSES and len(train_part) + len(test_part) == 96
    for images in (train_part, test_part):
        assert images.labels.dtype == torch.float32
        for path, row in zip(images.paths, images.labels.tolist(), strict=True):
            assert row == [float(int(path.stem) >> bit & 1) for bit in range(3)]
    renamed = test_part.relabel(("a", "red", "green", "blue"))
    assert torch.equal(renamed.labels[:, [3, 2, 1]], test_part.labels) and not renamed.labels[:, 0].any()


def test_parts_have_their_share_of_a_rare_class():
    labels = torch.zeros(96, 3)
    labels[:80, 0], labels[40:90, 1], labels[30:36, 2] = 1, 1, 1  # the last few have none
    nothing = torch.zeros(96, dtype=torch.int64)
    images = ImageSet("images", nothing, nothing, nothing, labels, CLASSES, "")
    assert images.class_counts().tolist() == [80, 50, 6] and images.named(30) == "blue;red" and images.named(95) == ""
    folds = fold_numbers(images.strata, 3)
    assert torch.bincount(folds[30:36]).tolist() == [2, 2, 2] and torch.bincount(folds[90:]).tolist() == [2, 2, 2]
    rest, held = split_holdout(images, 1 / 3)
    assert held.class_counts()[2] == 2 and len(rest) == 64


def test_average_precision_is_scikit_learns(answers):
    weights = np.random.default_rng(2).integers(0, 4, 200).astype(float)
    for drawn in (None, weights):
        found = average_precision(answers.logits, answers.labels, drawn)
        for number in range(5):
            truth = metrics.average_precision_score(
                answers.labels[:, number], answers.logits[:, number], sample_weight=drawn
            )
            assert found[number] == pytest.approx(truth, rel=1e-12)
        assert found[5] == 0


def expected_scores(answers):
    present, named = answers.labels[:, :5], answers.logits[:, :5] > 0
    shares = torch.tensor(answers.logits, dtype=torch.float64).sigmoid().numpy()
    top = answers.logits.argmax(1)
    return {
        "map": 100 * metrics.average_precision_score(present, answers.logits[:, :5], average="macro"),
        "balanced_accuracy": 100 * metrics.recall_score(present, named, average="macro"),
        "top1": 100 * answers.labels[np.arange(200), top].mean(),
        "loss": np.mean([metrics.log_loss(answers.labels[:, k], shares[:, k], labels=[0, 1]) for k in range(6)]),
    }


def test_scores_and_the_meter_are_scikit_learns(answers):
    meter = EvalMeter("cpu")
    for part in (slice(0, 70), slice(70, None)):
        meter.update(torch.tensor(answers.logits[part]), torch.tensor(answers.labels[part]).float())
    on_device, found = meter.read(), scores(answers, resamples=3)
    for name, value in expected_scores(answers).items():
        assert found[name].value == pytest.approx(value, rel=1e-5), name
        assert on_device[name] == pytest.approx(value, rel=1e-5), name
    f1 = metrics.f1_score(answers.labels, answers.logits > 0, average=None, zero_division=0)
    assert [row["f1"] for row in class_rows(answers)] == pytest.approx(100 * f1, abs=0.0051)
    wrong = np.flatnonzero(((answers.logits > 0) != answers.labels).any(1))
    assert set(mistakes(answers, 1000)) == set(wrong)


def test_loss_and_training_hits():
    logits, labels = torch.tensor([[2.0, -1.0], [0.5, 0.1]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    losses, _ = Objective(multi_label=True)(logits, None, labels, None)
    torch.testing.assert_close(losses.total, torch.nn.BCEWithLogitsLoss()(logits, labels))
    meter = TrainMeter("cpu", multi_label=True)
    meter.update(losses, logits, labels)
    assert meter.read(TrainMeter.EPOCH)["train_top1"] == 50  # the second image's likeliest class is not its own


def test_mixed_label_sets_are_weighted_sums():
    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    mixed = mix_labels(labels, torch.tensor([1, 0, 0, 0, 0, 0.75], dtype=torch.float64), 2)
    assert mixed.tolist() == [[0.75, 1.0], [0.25, 1.0]]


def test_a_mean_of_networks_is_the_mean_of_their_sigmoids():
    members = [torch.nn.Linear(4, 3) for _ in range(3)]
    images = torch.randn(5, 4)
    expected = torch.stack([member(images).sigmoid() for member in members]).mean(0)
    torch.testing.assert_close(MeanNetwork(members, multi_label=True)(images).sigmoid(), expected)


def test_a_run_learns_and_says_so_everywhere(run, capsys):
    result, answers = read_result(run), read_answers(run / "test")
    truth = 100 * metrics.average_precision_score(answers.labels, answers.logits, average="macro")
    assert result.test_map == pytest.approx(truth) and result.test_map > 80
    assert result.metric == "map" and "mean average precision" in result.verdict()
    found = json.loads((run / "test" / "scores.json").read_text())
    assert found["map"]["value"] == pytest.approx(truth) and "ece" not in found
    assert not (run / "test" / "confusion.csv").exists()
    assert "average precision (%)" in (run / "index.html").read_text()
    with (run / "images.csv").open(newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} >= {"", "red", "blue;green;red"}
    assert evaluate_checkpoint(str(run), device="cpu")["map"] == pytest.approx(truth)
    assert evaluate([str(run), "--device", "cpu"]) == 0 and "mean avg precision" in capsys.readouterr().out
    assert load_trained(result.teacher_run).config.data.is_multi_label
    card = model_card(lgfast.load(run, "cpu"), run)
    assert f"precision on the test images: {truth:.2f} %" in card and "the sigmoid of a logit" in card


def test_predictions_are_shares_of_each_class(run, pictures, tmp_path):
    names = [str(pictures / f"{i}.png") for i in range(8)]
    out = tmp_path / "found.csv"
    assert predict([str(run), *names, "--device", "cpu", "--threshold", "0.3", "--out", str(out)]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    network = lgfast.load(run, "cpu")
    shares = network.logits(next(network._batches([np.asarray(Image.open(name)) for name in names], 8))).sigmoid()
    for row, own in zip(rows, shares.detach(), strict=True):
        assert [float(row[name]) for name in CLASSES] == pytest.approx(own.tolist(), abs=1e-5)
        assert row["classes"] == ";".join(name for name in CLASSES if float(row[name]) >= 0.3)
    found = lgfast.predict(network, names)
    assert all(len(row.top) == 3 for row in found)
    assert [";".join(sorted(row.classes(0.3))) for row in found] == [row["classes"] for row in rows]
    assert predict([str(run), *names, "--device", "cpu", "--out", str(tmp_path / "found.jsonl")]) == 0
    first = json.loads((tmp_path / "found.jsonl").read_text().splitlines()[0])
    assert set(first) == {"path", "classes", "probabilities"} and set(first["probabilities"]) == set(CLASSES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.labels": ""}, "data.label_separator: classes are parted in a table; name it with data.labels"),
        ({"distill.mode": "soft"}, "distill.mode: logits of one class an image are distilled"),
        ({"optim.label_smoothing": 0.1}, "optim.label_smoothing: smooths one class an image"),
        ({"data.balance": "loss"}, "data.balance: loss weighs images of one class each"),
        ({"data.loader": "dali"}, "data.loader: dali reads images of one class each"),
        ({"data.label_separator": ""}, "eval.metric: map is of images with several classes"),
    ],
)
def test_what_is_not_defined_is_refused_by_its_key(changes, message):
    base = {name: SMALL[name] for name in ("data.labels", "data.label_separator", "eval.metric")}
    with pytest.raises(ValueError, match=message):
        replace(load_recipe("photos"), base | changes)
