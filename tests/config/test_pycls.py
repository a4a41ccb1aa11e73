"""Configurations of the paper's code become the recipes that stand for them: every key carried, refused or named."""

import copy
import dataclasses
import functools

import pytest
import yaml

from lgfast.config import DistillConfig, load_recipe, pycls, replace
from lgfast.config.pycls import equivalent, plain, read_pycls_config
from lgfast.config.pycls_keys import KEYS
from lgfast.models import create_model
from lgfast.train import parse, read_config
from tests.config.paper_files import FILES, flat, nested, resnet_file, student_file, whole_file

DEIT, GUIDED = FILES["cifar100-deit-ti-base"], FILES["cifar100-deit-ti-guided"]
# Keys of the paper's code that change nothing it computes, read from its code.
IDLE = ("CUDNN.BENCHMARK", "NUM_GPUS", "CNN.ACTIVATION_INPLACE", "PREC_TIME.", "LAUNCH.", "DATA_LOADER.PIN_MEMORY")
IDLE += ("DESC", "VERBOSE", "MAX_GPUS_PER_NODE", "CFG_DEST", "LOG_DEST", "LOG_PERIOD", "DIST_BACKEND", "HOST")
IDLE += ("PORT_RANGE", "DOWNLOAD_CACHE", "TRAIN.AUTO_RESUME", "TEST.WEIGHTS", "DISTILLATION.INTER_LOSS")
IDLE += ("OPTIM.STEPS", "OPTIM.LR_MULT", "OPTIM.EMA_ALPHA", "DISTILLATION.FEATURE_FILE")
IDLE += ("RESNET.NUM_GROUPS", "RESNET.WIDTH_PER_GROUP", "RESNET.STRIDE_1X1")  # of bottleneck blocks


def read(tmp_path, file, name="paper"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(file))
    return read_pycls_config(path)


def with_keys(file, changes):
    return nested(flat(file) | changes)


def config_of(tmp_path, file, changes=None):
    return read(tmp_path, with_keys(file, changes or {})).config


def test_the_paper_has_nineteen_files():
    assert len(FILES) == 19


@pytest.mark.parametrize("recipe", FILES)
def test_files_equal_their_recipes(tmp_path, recipe):
    expected = replace(load_recipe(recipe), {"precision": "fp32", "data.workers": 4})
    if not expected.needs_teacher:
        expected = replace(expected, {"augment.teacher_size": 0})
    assert read(tmp_path, FILES[recipe], recipe).config == expected


@pytest.mark.parametrize("recipe", FILES)
def test_what_the_papers_code_writes_beside_a_run_converts_as_its_file_does(tmp_path, recipe):
    whole = whole_file(FILES[recipe], recipe)
    assert len(flat(whole)) == len(KEYS) == 116
    assert read(tmp_path, whole, "config").config == read(tmp_path, FILES[recipe], recipe).config


def changed(value):
    """Another value, of the same type where there is one."""
    if isinstance(value, (list, tuple)):
        return (changed(value[0]), *value[1:]) if value else (0,)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, float):
        return value / 2 or 0.25
    return 7 if value is None else value + 1


@pytest.mark.parametrize("recipe", FILES)
def test_every_key_of_a_file_means_something(monkeypatch, recipe):
    """Changed alone, a key changes the result, or is refused by name; one that does neither is named as dropped."""
    monkeypatch.setattr(pycls, "load_recipe", functools.cache(load_recipe))
    whole = {key: plain(value, key) for key, value in flat(whole_file(FILES[recipe], recipe)).items()}
    before = equivalent(whole, "config")
    idle = set()
    for key, value in whole.items():
        try:
            after = equivalent(whole | {key: changed(value)}, "config")
        except ValueError as error:
            assert key.rpartition(".")[2] in str(error), error
            continue
        if after.config == before.config:
            dropped = [note.rpartition(": ")[2].split(", ") for note in after.notes if note.startswith("dropped, ")]
            is_open = any(note.startswith(f"{key}: ") for note in after.notes)  # a file that is not there
            assert is_open or any(key in keys for keys in dropped), key
            idle |= set() if is_open else {key}
    read_in_file = {key for key in flat(FILES[recipe]) if not key.startswith(IDLE)}
    unread = {"TRANSFORMER.PATCH_SIZE"} if "t2t" in recipe else set()  # its stem is described by the section T2T
    assert idle & read_in_file == unread
    assert {key for key in whole if key.startswith(IDLE)} <= idle


@pytest.mark.parametrize(
    ("changes", "ours"),
    [
        ({"TRANSFORMER.PATCH_SIZE": 8}, {"model.patch_size": 8}),
        ({"TRANSFORMER.NUM_HEADS": 6}, {"model.num_heads": 6}),
        ({"TRANSFORMER.HIDDEN_DIM": 384, "TRANSFORMER.NUM_HEADS": 6}, {"model.embed_dim": 384, "model.num_heads": 6}),
        ({"TRANSFORMER.DEPTH": 6}, {"model.depth": 6}),
        ({"TRANSFORMER.DROP_PATH_RATE": 0.2}, {"model.drop_path_rate": 0.2}),
        ({"TRANSFORMER.DROP_PATH_RATE": "2e-1"}, {"model.drop_path_rate": 0.2}),  # YAML reads text here
        ({"OPTIM.OPTIMIZER": "adam"}, {"optim.name": "adam"}),
        ({"TRAIN.MIXED_PRECISION": True}, {"precision": "fp16-amp"}),
        ({"TRAIN.STRONG_AUGMENTATION": False}, {"augment.weak": True}),
        ({"MODEL.IMG_SIZE": 16, "RNG_SEED": 7}, {"augment.image_size": 16, "seed": 7}),
        ({"TRAIN.MIXUP_ALPHA": 0.8}, {"augment.mixup_alpha": 0.8}),
        ({"TRAIN.CUTMIX_ALPHA": 1.0}, {"augment.cutmix_alpha": 1.0}),
        ({"TRAIN.LABEL_SMOOTHING": 0.1}, {"optim.label_smoothing": 0.1}),
        (
            {"TRAIN.DATASET": "flowers", "TEST.DATASET": "flowers", "MODEL.NUM_CLASSES": 102},
            {"data.dataset": "flowers102"},
        ),
    ],
)  # fmt: skip
def test_what_has_a_key_here_is_carried(tmp_path, changes, ours):
    assert config_of(tmp_path, DEIT, changes) == replace(config_of(tmp_path, DEIT), ours)


def test_a_width_of_convit_is_that_of_one_head_here(tmp_path):
    changes = {"TRANSFORMER.HIDDEN_DIM": 96, "TRANSFORMER.NUM_HEADS": 6}
    options = config_of(tmp_path, FILES["cifar100-convit-ti-base"], changes).model
    model = create_model(options.name, num_classes=2, image_size=32, patch_size=16, **options.shape_overrides())
    assert (model.embed_dim, model.blocks[0].attn.num_heads) == (96, 6)
    with pytest.raises(ValueError, match=r"TRANSFORMER\.NUM_HEADS: 5 does not divide HIDDEN_DIM, 192"):
        config_of(tmp_path, FILES["cifar100-convit-ti-base"], {"TRANSFORMER.NUM_HEADS": 5})


def test_t2t_networks_of_other_shapes_are_told_by_their_mlp(tmp_path):
    config = config_of(tmp_path, FILES["cifar100-t2t-vit-14-base"], {"TRANSFORMER.DEPTH": 7})
    assert (config.model.name, config.model.depth, config.model.embed_dim) == ("t2t_vit_14", 7, None)


def test_only_the_last_stage_of_cvt_drops_paths_here(tmp_path):
    file, key = FILES["cifar100-cvt-13-base"], "TRANSFORMER.DROP_PATH_RATE"
    assert config_of(tmp_path, file, {key: [0.0, 0.0, 0.3]}).model.drop_path_rate == 0.3
    for rates in ([0.1, 0.1, 0.1], 0.1):
        with pytest.raises(ValueError, match=r"TRANSFORMER\.DROP_PATH_RATE: CvT of lgfast has \(0\.0, 0\.0, 0\.1\)"):
            config_of(tmp_path, file, {key: rates})


def test_a_resnet_without_an_image_size_takes_224(tmp_path):
    file = resnet_file(56, 32)
    del file["MODEL"]["IMG_SIZE"]
    assert read(tmp_path, file).config.augment.image_size == 224


@pytest.mark.parametrize(("depth", "name"), [(8, "cifar_resnet8"), (110, "cifar_resnet110"), (18, "resnet18")])
def test_a_cnn_of_another_depth(tmp_path, depth, name):
    assert config_of(tmp_path, FILES["cifar100-resnet56"], {"CNN.DEPTH": depth}).model.name == name


@pytest.mark.parametrize("stages", [[0, 1, 2], [1, 2, -1]])
def test_a_guiding_resnet_18_is_imitated_at_the_stages_of_the_papers_code(tmp_path, stages):
    """Its stages 1 to 4 have 64, 128, 256 and 512 channels; the stem is none of them."""
    changes = {"CNN.DEPTH": 18, "DISTILLATION.INTER_TEACHER_INDEX": stages}
    teacher = config_of(tmp_path, GUIDED, changes).teacher
    assert (teacher.recipe, teacher.name) == ("cifar100-resnet56", "resnet18")
    info = create_model(teacher.name, num_classes=2).feature_info
    assert [info[stage]["num_chs"] for stage in teacher.stages] == [(64, 128, 256, 512)[stage] for stage in stages]


def test_the_weights_of_a_teacher_are_taken_where_they_are(tmp_path):
    weights = tmp_path / "model.pyth"
    missing = read(tmp_path, GUIDED)
    assert missing.config.teacher.checkpoint == "auto"
    assert any("there is no file work_dirs/r-56_c100/model.pyth" in note for note in missing.notes)
    weights.touch()
    found = read(tmp_path, with_keys(GUIDED, {"DISTILLATION.TEACHER_WEIGHTS": str(weights)}))
    assert (found.config.teacher.checkpoint, found.config.teacher.name) == (str(weights), "cifar_resnet56")
    assert not any("TEACHER_WEIGHTS" in note for note in found.notes)


@pytest.mark.parametrize("is_guided", [True, False])
def test_logit_distillation_carries_over(tmp_path, is_guided):
    keys = {"ENABLE_LOGIT": True, "LOGIT_TEMP": 3.0, "LOGIT_WEIGHT": 0.25, "TEACHER_IMG_SIZE": 32}
    changes = {f"DISTILLATION.{name}": value for name, value in keys.items()}
    file = GUIDED if is_guided else DEIT
    config = config_of(tmp_path, file, changes)
    assert config.distill == DistillConfig("soft", 3.0, 0.25)
    assert config.guidance.weight == (2.5 if is_guided else 0)
    assert config.model.name == "deit_tiny_distilled_patch16_224"
    assert config.teacher.recipe == "cifar100-resnet56"
    assert config_of(tmp_path, file, changes | {"DISTILLATION.LOGIT_LOSS": "hard"}).distill.mode == "hard"


def test_other_students_distil_their_own_logits(tmp_path):
    config = config_of(tmp_path, FILES["cifar100-pvt-ti-base"], {"DISTILLATION.ENABLE_LOGIT": True})
    assert (config.model.name, config.distill) == ("pvt_tiny", DistillConfig("soft", 1.0, 0.5))


def test_dropped_keys_are_named_with_the_reason(tmp_path):
    file = with_keys(DEIT, {"OPTIM.MOMENTUM": 0.5, "LOG_PERIOD": 3, "PIT.STRIDE": 4, "OUT_DIR": "elsewhere/mine"})
    notes = read(tmp_path, file).notes
    assert "dropped, of SGD, which OPTIMIZER does not name: OPTIM.MOMENTUM" in notes
    assert "dropped, what its log shows; here log.every_steps: LOG_PERIOD" in notes
    assert "dropped, DeiT does not read it: PIT.STRIDE" in notes
    assert any(note.endswith("OUT_DIR; here run_dir, or runs/NAME-DATE-TIME") for note in notes)


def test_the_command_line_prints_the_equivalent_as_yaml_with_what_is_not_in_it(tmp_path, capsys):
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(with_keys(DEIT, {"RNG_SEED": 7})))
    _, options = parse(["--from-pycls", str(path), "--epochs", "2"])
    config = read_config(options)
    assert (config.name, config.seed, config.epochs) == ("paper", 7, 2)
    printed = capsys.readouterr().out
    assert "# dropped, speed and machine only: CUDNN.BENCHMARK\n" in printed
    assert all(line.startswith("# ") for line in printed.splitlines())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"OPTIM.LR_POLICY": "steps"}, r"paper\.yaml: OPTIM\.LR_POLICY: only 'cos' has an equivalent .* got 'steps'"),
        ({"OPTIM.SPEED": 1}, r"OPTIM\.SPEED: not a key"),
        ({"OPTIM.BASE_LR": "fast"}, r"OPTIM\.BASE_LR: expected a number, got 'fast'"),
        ({"OPTIM.BASE_LR": 0}, r"paper\.yaml: OPTIM\.BASE_LR: optim\.lr: expected a number above 0, got 0"),
        ({"OPTIM.BASE_LR": None}, r"OPTIM\.BASE_LR: expected a number, got None"),
        ({"OPTIM.BASE_LR": {"a": 1}}, r"OPTIM\.BASE_LR: expected a value or a list of values, got dict"),
        ({"OPTIM.BETA1": 0.8}, r"OPTIM\.BETA1: only 0\.9"),
        ({"OPTIM.OPTIMIZER": "lamb"}, r"OPTIM\.OPTIMIZER: expected one of sgd, adam, adamw, got 'lamb'"),
        ({"TRANSFORMER.MLP_RATIO": 2}, r"TRANSFORMER\.MLP_RATIO: DeiT of lgfast has 4, and no key .* to 2"),
        ({"TRANSFORMER.LN_EPS": 1e-5}, r"TRANSFORMER\.LN_EPS: DeiT of lgfast has 1e-06"),
        ({"TRANSFORMER.DROP_PATH_RATE": None}, r"TRANSFORMER\.DROP_PATH_RATE: DeiT of lgfast has 0\.1"),
        ({"MODEL.TYPE": "Swin"}, r"MODEL\.TYPE: expected one of ResNet, DeiT"),
        ({"MODEL.NUM_CLASSES": 10}, r"MODEL\.NUM_CLASSES: 100 goes with TRAIN\.DATASET cifar100, got 10"),
        ({"TRAIN.DATASET": "imagenet"}, r"TRAIN\.DATASET: expected one of cifar100"),
        ({"TEST.DATASET": "flowers"}, r"TEST\.DATASET: 'cifar100' goes with TRAIN\.DATASET cifar100, got 'flowers'"),
        ({"TEST.SPLIT": "train"}, r"TEST\.SPLIT: 'test' goes with TRAIN\.DATASET cifar100, got 'train'"),
        ({"DISTILLATION.ENABLE_INTER": True}, r"ENABLE_INTER: expected as many blocks in .* \(\) and \(\)"),
    ],
)  # fmt: skip
def test_what_has_no_equivalent_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, DEIT, changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"CNN.DEPTH": 50}, r"CNN\.DEPTH: lgfast has the paper's CNNs of depth 18, 8, .* got 50"),
        ({"CNN.BN_EPS": 1e-3}, r"CNN\.BN_EPS: only 1e-05"),
        ({"CNN.ZERO_INIT_FINAL_BN_GAMMA": True}, r"CNN\.ZERO_INIT_FINAL_BN_GAMMA: only False"),
        ({"DISTILLATION.INTER_STUDENT_INDEX": [0, 6]}, r"expected as many blocks in INTER_STUDENT_INDEX as stages"),
        ({"DISTILLATION.TEACHER_MODEL": "DeiT"}, r"DISTILLATION\.TEACHER_MODEL: only 'ResNet'"),
        ({"MODEL.TYPE": "ResNet"}, r"MODEL\.TYPE: a CNN as a student .* has no equivalent"),
        (
            {"DISTILLATION.OFFLINE": True, "DISTILLATION.ENABLE_LOGIT": True},
            r"DISTILLATION\.OFFLINE: without ENABLE_LOGIT alone",
        ),
    ],
)  # fmt: skip
def test_teachers_without_equivalent_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, GUIDED, changes)


def test_keys_of_optimizers_that_the_file_does_not_name_are_not_judged(tmp_path):
    sgd = FILES["cifar100-resnet56"]
    assert config_of(tmp_path, sgd, {"OPTIM.BETA1": 0.5}) == config_of(tmp_path, sgd)
    with pytest.raises(ValueError, match=r"OPTIM\.NESTEROV: only True"):
        config_of(tmp_path, sgd, {"OPTIM.NESTEROV": False})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: 1}", "no MODEL section"),
        ("MODEL: {TYPE: DeiT, TYPE: PVT}", "not valid YAML: line 1: TYPE is given twice"),
        ("MODEL: {IMG_SIZE: [[1]]}", r"MODEL\.IMG_SIZE: expected a value or a list of values, got list"),
        ("[1, 2]", "expected a mapping of keys, got list"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "other.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_pycls_config(path)


def test_the_files_of_the_tests_are_not_shared(tmp_path):
    before = copy.deepcopy(GUIDED)
    assert student_file("deit-ti", True) == before
    assert dataclasses.asdict(read(tmp_path, before).config) == dataclasses.asdict(read(tmp_path, GUIDED).config)
