"""Configurations of the paper's code become the recipes that stand for them."""

import dataclasses

import pytest
import yaml

from lgfast.config import DistillConfig, load_recipe
from lgfast.config.pycls import load_pycls_config
from lgfast.train import parse

OPTIM = {
    "OPTIMIZER": "adamw", "BASE_LR": 5e-4, "MIN_LR": 5e-6, "LR_POLICY": "cos", "MAX_EPOCH": 300,
    "WEIGHT_DECAY": 0.05, "WARMUP_FACTOR": 0.001, "WARMUP_EPOCHS": 20,
}  # fmt: skip
RUN = {
    "TRAIN": {"DATASET": "cifar100", "SPLIT": "train", "BATCH_SIZE": 128},
    "TEST": {"DATASET": "cifar100", "SPLIT": "test", "BATCH_SIZE": 200},
    "NUM_GPUS": 1,
    "CUDNN": {"BENCHMARK": False},
}
RATES = {"DROP_RATE": 0.0, "DROP_PATH_RATE": 0.1, "ATTENTION_DROP_RATE": 0.0}
DEIT = {"PATCH_SIZE": 16, "HIDDEN_DIM": 192, "DEPTH": 12, "NUM_HEADS": 3, "MLP_RATIO": 4}
PVT = {"PATCH_SIZE": [4, 2, 2, 2], "HIDDEN_DIM": [64, 128, 320, 512], "DEPTH": [2, 2, 2, 2], "NUM_HEADS": [1, 2, 5, 8]}


def guided(layers):
    return {
        "ENABLE_INTER": True, "INTER_TRANSFORM": "linear", "INTER_TEACHER_INDEX": [0, 1, 2],
        "INTER_STUDENT_INDEX": layers, "INTER_WEIGHT": 2.5, "TEACHER_MODEL": "ResNet",
        "TEACHER_WEIGHTS": "work_dirs/r-56_c100/model.pyth", "TEACHER_IMG_SIZE": 32,
    }  # fmt: skip


def write(tmp_path, **sections):
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump({"OPTIM": OPTIM} | RUN | sections))
    return path


@pytest.mark.parametrize(
    ("kind", "transformer", "layers", "recipe"),
    [
        ("DeiT", DEIT, None, "cifar100-deit-ti-base"),
        ("DeiT", DEIT, [0, 6, 11], "cifar100-deit-ti-guided"),
        ("PVT", PVT, [0, 3, 7], "cifar100-pvt-ti-guided"),
        ("T2TViT", DEIT | {"DEPTH": 7, "HIDDEN_DIM": 256}, [0, 3, 6], "cifar100-t2t-vit-7-guided"),
    ],
)
def test_students_equal_their_recipes(tmp_path, kind, transformer, layers, recipe):
    sections = {"MODEL": {"TYPE": kind, "NUM_CLASSES": 100}, "TRANSFORMER": transformer | RATES}
    if layers:
        sections["DISTILLATION"] = guided(layers)
    config = load_pycls_config(write(tmp_path, **sections))
    assert dataclasses.replace(config, name=recipe) == load_recipe(recipe)


def test_the_teacher_equals_its_recipe(tmp_path):
    optim = {"BASE_LR": 0.1, "LR_POLICY": "cos", "MAX_EPOCH": 300, "MOMENTUM": 0.9, "NESTEROV": True}
    path = write(tmp_path, MODEL={"TYPE": "ResNet", "IMG_SIZE": 32}, CNN={"DEPTH": 56}, OPTIM=optim)
    config, recipe = load_pycls_config(path), load_recipe("cifar100-resnet56")
    warmup = dataclasses.replace(config.optim, warmup_factor=recipe.optim.warmup_factor)  # unused without warm-up
    assert dataclasses.replace(config, name=recipe.name, optim=warmup) == recipe


@pytest.mark.parametrize("is_guided", [True, False])
def test_logit_distillation_carries_over(tmp_path, is_guided):
    keys = {"ENABLE_LOGIT": True, "LOGIT_TEMP": 3.0, "LOGIT_WEIGHT": 0.25, "TEACHER_IMG_SIZE": 32}
    if is_guided:
        keys |= guided([0, 6, 11])
    sections = {"MODEL": {"TYPE": "DeiT"}, "TRANSFORMER": DEIT | RATES}
    config = load_pycls_config(write(tmp_path, DISTILLATION=keys, **sections))
    assert config.distill == DistillConfig("soft", 3.0, 0.25)
    assert config.guidance.weight == (2.5 if is_guided else 0)
    assert config.model.name == "deit_tiny_distilled_patch16_224"
    assert config.teacher.recipe == "cifar100-resnet56"
    hard = load_pycls_config(write(tmp_path, DISTILLATION=keys | {"LOGIT_LOSS": "hard"}, **sections))
    assert hard.distill.mode == "hard"


def test_offline_mode_equals_its_recipe(tmp_path):
    keys = guided([0, 6, 11]) | {"OFFLINE": True, "FEATURE_FILE": "temp/deit.npz"}
    path = write(tmp_path, DISTILLATION=keys, MODEL={"TYPE": "DeiT"}, TRANSFORMER=DEIT | RATES)
    recipe = load_recipe("cifar100-deit-ti-offline")
    assert dataclasses.replace(load_pycls_config(path), name=recipe.name) == recipe


def test_offline_logits_are_refused(tmp_path):
    keys = guided([0, 6, 11]) | {"OFFLINE": True, "ENABLE_LOGIT": True}
    path = write(tmp_path, DISTILLATION=keys, MODEL={"TYPE": "DeiT"}, TRANSFORMER=DEIT | RATES)
    with pytest.raises(ValueError, match="offline cannot be: logits of whole images are no targets for crops"):
        load_pycls_config(path)


def test_other_students_distil_their_own_logits(tmp_path):
    sections = {"MODEL": {"TYPE": "PVT"}, "TRANSFORMER": PVT | RATES}
    config = load_pycls_config(write(tmp_path, DISTILLATION={"ENABLE_LOGIT": True}, **sections))
    assert (config.model.name, config.distill) == ("pvt_tiny", DistillConfig("soft", 1.0, 0.5))


def test_mixup_and_cutmix_carry_over(tmp_path):
    keys = {"MIXUP_ALPHA": 0.8, "CUTMIX_ALPHA": 1.0, "LABEL_SMOOTHING": 0.1}
    config = load_pycls_config(write(tmp_path, MODEL={"TYPE": "DeiT"}, TRANSFORMER=DEIT | RATES, TRAIN=keys))
    assert (config.augment.mixup_alpha, config.augment.cutmix_alpha, config.optim.label_smoothing) == (0.8, 1.0, 0.1)


def test_command_line_prints_the_equivalent(tmp_path):
    path = write(tmp_path, MODEL={"TYPE": "DeiT"}, TRANSFORMER=DEIT | RATES, RNG_SEED=7)
    config, _ = parse(["--from-pycls", str(path), "--epochs", "2"])
    assert (config.name, config.seed, config.epochs) == ("paper", 7, 2)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"OPTIM": {"NESTEROV": False}}, r"OPTIM.NESTEROV: only True has an equivalent in lgfast, got False"),
        ({"OPTIM": {"LR_POLICY": "steps"}}, r"OPTIM.LR_POLICY: only 'cos'"),
        ({"OPTIM": {"SPEED": 1}}, r"OPTIM.SPEED: not a key"),
        ({"TRANSFORMER": DEIT | {"HIDDEN_DIM": 384}}, r"no such network in the paper: DeiT of depth 12 and width 384"),
        ({"TRAIN": {"DATASET": "imagenet"}}, r"TRAIN.DATASET: expected one of cifar100"),
    ],
)
def test_what_has_no_equivalent_is_refused(tmp_path, sections, message):
    path = write(tmp_path, **({"MODEL": {"TYPE": "DeiT"}, "TRANSFORMER": DEIT} | sections))
    with pytest.raises(ValueError, match=message):
        load_pycls_config(path)


def test_other_yaml_is_refused(tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("optim: {lr: 1}")
    with pytest.raises(ValueError, match="no MODEL section"):
        load_pycls_config(path)
