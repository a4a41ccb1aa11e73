"""Configuration: recipes load, overrides convert, and every mistake names the nearest valid key."""

import dataclasses
import subprocess
import sys

import pytest
import yaml

from lgfast.config import (
    Config,
    dump_yaml,
    from_dict,
    get,
    load_recipe,
    load_yaml,
    recipe_names,
    replace,
    valid_keys,
)
from lgfast.guidance.stopping import guidance_stop
from lgfast.train import main, parse, read_config


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_a_round_trip(name, tmp_path):
    config = load_recipe(name)
    assert config.name == name
    path = tmp_path / "copy.yaml"
    path.write_text(dump_yaml(config))
    assert load_yaml(path) == config


def test_keys_that_are_gone_are_passed_over_in_files_alone():
    assert from_dict({"log": {"save_every_epochs": 2, "every_steps": 7}}) == replace(Config(), {"log.every_steps": 7})
    with pytest.raises(ValueError, match=r"unknown configuration key 'log\.save_every_epochs'; did you mean"):
        replace(Config(), {"log.save_every_epochs": 2})


def test_guided_recipe_differs_from_base_by_guidance_and_teacher_only():
    base, guided = load_recipe("cifar100-deit-ti-base"), load_recipe("cifar100-deit-ti-guided")
    assert dataclasses.replace(guided, name=base.name, guidance=base.guidance, teacher=base.teacher) == base
    assert guided.guidance.weight == 2.5


def test_recipes_beyond_the_paper_have_the_published_settings_and_nothing_else():
    """Thresholds and factors of TNNLS 2024 (10.1109/TNNLS.2024.3515076) and of arXiv 2403.01427 for transformers."""
    base, guided, adaptive, distilled = (
        load_recipe(f"cifar100-deit-ti-{name}") for name in ("base", "guided", "adaptive", "distilled")
    )
    assert adaptive == replace(guided, {"name": adaptive.name, "guidance.stop": "adaptive"})
    rule = guidance_stop(adaptive.guidance.stop, adaptive.guidance.stop_threshold, adaptive.epochs)
    assert (rule.window, rule.threshold) == (50, -0.02)
    changes = {"mode": "soft", "standardise": True, "weight": 9, "cls_weight": 0.5, "temperature": 3}
    changes = {f"distill.{key}": value for key, value in changes.items()}
    teacher = {"teacher.recipe": guided.teacher.recipe}
    assert distilled == replace(base, {"name": distilled.name} | teacher | changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mimetic", {"model.init": "mimetic"}),
        ("impulse", {"model.init": "impulse"}),
        ("muon", {"optim.name": "muon"}),
        ("ema", {"step.ema_decay": 0.9999, "step.ema_warmup": True}),
        ("taps", {"guidance.taps": "learned", "guidance.student_layers": ()}),
    ],
)
def test_a_recipe_of_one_method_differs_from_guidance_by_that_method_only(name, changes):
    guided, recipe = load_recipe("cifar100-deit-ti-guided"), load_recipe(f"cifar100-deit-ti-{name}")
    assert recipe == replace(guided, {"name": recipe.name} | changes) != guided


def test_the_best_recipe_takes_the_choices_of_the_measured_one():
    measured, adaptive, best = (
        load_recipe(f"cifar100-{name}") for name in ("cpu-best", "deit-ti-adaptive", "deit-ti-best")
    )
    changes = {"name": best.name, "optim.name": measured.optim.name, "eval.every_epochs": best.epochs}
    assert best == replace(adaptive, changes)
    assert load_recipe(best.teacher.recipe).optim.name == load_recipe(measured.teacher.recipe).optim.name == "sgd"


def test_replace_converts_text_to_the_field_type():
    changes = {"optim.lr": "1e-3", "guidance.student_layers": "0,3,5", "optim.per_step": "true", "model.depth": "7"}
    config = replace(Config(), changes)
    assert config.optim.lr == 1e-3
    assert config.guidance.student_layers == (0, 3, 5)
    assert config.optim.per_step is True
    assert config.model.depth == 7


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.learning_rat", 1, r"unknown configuration key 'optim\.learning_rat'; optim has name, lr, min_lr, "),
        ("optm.lr", 1, "did you mean 'optim.lr'"),
        ("lr", 1, "did you mean 'optim.lr'"),
        ("weight", 1, "did you mean 'guidance.weight' or 'distill.weight'?"),
        ("model.width_x", 1, "unknown configuration key 'model.width_x'; model has name, "),
        ("train", 1, "unknown configuration key 'train'; python -m lgfast.train --help lists the keys"),
        ("optim.lr.x", 1, "unknown configuration key 'optim.lr.x'"),
        ("optim.lr", "fast", "optim.lr: expected a number, got 'fast'"),
        ("optim.lr", 0, "optim.lr: expected a number above 0, got 0"),
        ("seed", 2**63, "seed: expected a number of 64 bits, got 9223372036854775808"),
        ("data.seed", -(2**64), r"data\.seed: expected a number of 64 bits"),
        ("epochs", 1.5, "epochs: expected a whole number, got 1.5"),
        ("teacher.bn", "eval", "teacher.bn: expected one of batch, synced, running, got 'eval'"),
        ("eval.holdout_fraction", 1.5, "eval.holdout_fraction: expected 0 < value < 1, got 1.5"),
        ("distill.weight", 1.5, "distill.weight: expected 0 to 1, more with distill.cls_weight, got 1.5"),
        ("optim.label_smoothing", -0.1, "optim.label_smoothing: expected 0 to 1, got -0.1"),
        ("model.drop_path_rate", 1.5, "model.drop_path_rate: expected 0 to 1, got 1.5"),
        ("distill.temperature", 0, "distill.temperature: expected 0.01 to 1000, got 0"),
        ("augment.crop_scale", "0.5", r"augment\.crop_scale: expected 2 values, got \(0\.5,\)"),
        ("data.stored_side", -1, "data.stored_side: expected 0 to 2147483647, got -1"),
        ("data.max_pixels", 0, "data.max_pixels: expected 1 to 178956970, got 0"),
        ("data.max_pixels", 178_956_971, "data.max_pixels: expected 1 to 178956970, got 178956971"),
        ("run_dir", "runs/caf\udce9", "run_dir: expected a path in UTF-8, got 'runs/caf"),
        ("optim.per_step", "maybe", "optim.per_step: expected true or false, got 'maybe'"),
    ],
)
def test_bad_values_and_keys_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        replace(Config(), {key: value})


@pytest.mark.parametrize("changes", [{}, {"guidance.weight": 0, "distill.mode": "soft"}])
def test_a_teacher_without_an_input_size_is_refused(changes):
    with pytest.raises(ValueError, match=r"augment\.teacher_size: the teacher needs an input size"):
        replace(Config(), changes | {"augment.teacher_size": 0})


def test_unknown_key_in_yaml_names_the_nearest(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"guidance": {"wieght": 1.0}}))
    with pytest.raises(ValueError, match=r"'guidance.wieght'; did you mean 'guidance.weight'"):
        load_yaml(path)


def test_broken_yaml_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optim: {lr: 1")
    with pytest.raises(ValueError, match=r"mine.yaml: not valid YAML"):
        load_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: 3", r"mine\.yaml: base: expected the name of a recipe or a file, got 3"),
        ("base: [digits]", r"mine\.yaml: base: expected .* got \['digits'\]"),
        ("base: {a: 1}", r"mine\.yaml: base: expected .* got \{'a': 1\}"),
        ("base: true", r"mine\.yaml: base: expected .* got True"),
        ("base: mine.yaml", r"mine\.yaml: base: mine\.yaml builds on itself"),
        ("base: other.yaml", r"mine\.yaml: other\.yaml: base: \./mine\.yaml builds on itself"),
        ("base: nowhere", r"mine\.yaml: unknown recipe 'nowhere'; there is no such file either\. Known: chaoyang"),
        ("seed: 1\nseed: 2", r"mine\.yaml: not valid YAML: line 2: seed is given twice"),
        ("optim: {lr: 1, lr: 2}", r"mine\.yaml: not valid YAML: line 1: lr is given twice"),
        ("[" * 5000, r"mine\.yaml: nested too deeply for a configuration"),
        ("optim: " + "[" * 200 + "]" * 200, r"mine\.yaml: optim: expected a mapping of keys, got \[\[\["),
        ("optim: {lr: &x [*x]}", r"mine\.yaml: optim\.lr: expected a number, got \[\[\["),
        ("", r"mine\.yaml: holds no configuration key"),
        ("# epochs: 3\n", r"mine\.yaml: holds no configuration key"),
        ("about: text\n", r"mine\.yaml: holds no configuration key"),
        ("1: 2", r"mine\.yaml: unknown configuration key '1'"),
        ("seed: 2024-13-45", r"mine\.yaml: (not valid YAML|seed: expected)"),
        (
            "optim: !!python/object:os.system {}",
            r"mine\.yaml: not valid YAML: line 1: could not determine",
        ),
        ("optim: {lr: 1", r"mine\.yaml: not valid YAML: line 1: "),
        ("\0", r"mine\.yaml: not valid YAML: "),
    ],
)
def test_yaml_that_is_no_configuration_is_one_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text("base: ./mine.yaml")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_yaml("mine.yaml")
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000


def test_files_that_are_no_text_are_one_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(ValueError, match=r"mine\.yaml: not valid YAML: not UTF-8 at byte 9"):
        load_yaml(path)
    with pytest.raises(ValueError, match="/dev/zero: expected a configuration, got more than 1 MiB"):
        load_yaml("/dev/zero")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)


def test_a_recipe_may_build_on_a_file_twice_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("base: digits-base\nepochs: 3")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nseed: 5")
    assert load_yaml("b.yaml") == replace(load_recipe("digits-base"), {"epochs": 3, "seed": 5})


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cifar100-deit-ti-base'"):
        load_recipe("cifar100-deit-base")


def test_section_that_is_not_a_mapping_is_refused():
    with pytest.raises(ValueError, match="optim: expected a mapping"):
        from_dict({"optim": 3})


def from_arguments(*arguments):
    return read_config(parse(arguments)[1])


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        (["--optim.lr", "0.01"], "optim.lr", 0.01),
        (["--optim.lr=1e-2"], "optim.lr", 0.01),
        (["--optim.weight_decay", "0.1"], "optim.weight_decay", 0.1),
        (["--model.patch-size", "4"], "model.patch_size", 4),
        (["--model.patch-size", "None"], "model.patch_size", None),
        (["--guidance.student-layers", "0", "-1", "3"], "guidance.student_layers", (0, -1, 3)),
        (["--guidance.student-layers", "0,2,4"], "guidance.student_layers", (0, 2, 4)),
        (["--guidance.student-layers"], "guidance.student_layers", ()),
        (["--augment.crop-scale", "0.3", "1", "--seed", "3"], "augment.crop_scale", (0.3, 1.0)),
        (["--data.download"], "data.download", True),
        (["--data.download", "false"], "data.download", False),
        (["--log.no-tensorboard"], "log.tensorboard", False),
        (["--log.no_tensorboard", "--log.tensorboard"], "log.tensorboard", True),
        (["--teacher.bn", "running"], "teacher.bn", "running"),
        (["--seed", "-5"], "seed", -5),
    ],
)
def test_a_flag_says_what_set_says(flags, key, value):
    config = from_arguments("--recipe", "digits", *flags)
    assert get(config, key) == value
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
    also = ["--set", "seed=3"] if "--seed" in flags[:-1] and key != "seed" else []
    assert from_arguments("--recipe", "digits", "--set", f"{key}={text}", *also) == config


def test_a_flag_goes_before_set():
    assert from_arguments("--set", "epochs=3", "--epochs", "4", "--set", "epochs=5").epochs == 4


@pytest.mark.parametrize("is_hyphened", [True, False])
def test_every_key_is_a_flag(is_hyphened):
    expected, arguments = replace(load_recipe("digits-resnet8"), {"data.download": True, "seed": 7}), []
    for key in valid_keys():
        value = get(expected, key)
        texts = [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
        arguments += [f"--{key.replace('_', '-') if is_hyphened else key}", *texts]
    assert from_arguments(*arguments) == expected


@pytest.mark.parametrize("option", ["--recipe", "--config", "--from-pycls", "--resume"])
def test_an_empty_option_is_not_taken_for_the_default(option):
    with pytest.raises(ValueError, match=f"argument {option}: expected a value, got an empty one"):
        from_arguments(option, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "-1"], "epochs: expected 0 to 2147483647, got -1"),
        (["--set", "epochs=-1"], "epochs: expected 0 to 2147483647, got -1"),
        (["--optim.lr", "fast"], "optim.lr: expected a number, got 'fast'"),
        (["--optim.lr"], "argument --optim.lr: expected one argument"),
        (["--optim.lr", "1", "2"], "expected an option such as --optim.lr 1e-3, got '2'"),
        (["digits"], "expected an option such as --optim.lr 1e-3, got 'digits'"),
        (["--teacher.bn", "none"], "teacher.bn: expected one of batch, synced, running, got 'none'"),
        (["--data.download", "maybe"], "data.download: expected true or false, got 'maybe'"),
        (["--augment.mean", "0.5"], r"augment.mean: expected 3 values, as std has, got (0.5,)"),
        (["--set", "epochs"], "--set: expected KEY=VALUE, got 'epochs'"),
        (["--trials", "many"], "argument --trials: invalid int value: 'many'"),
        (["--recipe", "digits", "--config", "x"], "--recipe and --config each name a configuration; give one"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize("flag", ["--optim.lrr=3", "--optm.lr", "--optim.warmup"])
def test_unknown_flag_names_the_nearest(flag):
    with pytest.raises(ValueError, match=r"unknown configuration key .* did you mean 'optim\."):
        parse([flag, "1"])


def test_help_lists_every_key_with_its_comment(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help", "--recipe", "cifar100-deit-ti-base"])
    assert stop.value.code in (None, 0)
    shown = capsys.readouterr().out
    assert all(f"--{key.replace('_', '-')}" in shown for key in valid_keys() if valid_keys()[key] is not bool)
    assert "continue the run or the sweep" in shown and "ranks" in shown


def test_yaml_truth_values_mean_on_and_off(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("step:\n  graph: off\n  compile: on\n")
    step = load_yaml(path).step
    assert (step.graph, step.compile) == ("off", "on")


def test_accumulation_must_divide_the_batch():
    with pytest.raises(ValueError, match=r"step.accumulate: 5 does not divide data.batch_size, 64"):
        replace(Config(), {"step.accumulate": 5})


def test_reading_a_configuration_needs_neither_torch_nor_the_native_library():
    code = "import sys, lgfast.config; assert not {'torch', 'timm', 'lgfast._C'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
