"""A sweep's space is checked before anything starts."""

import json

import optuna
import pytest

from lgfast.config import get, load_recipe, replace, valid_keys
from lgfast.sweep.space import Space, read_space

BASE = load_recipe("digits")


def grid(*assignments):
    return read_space(list(assignments), None, BASE)


def space(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return read_space([], str(path), BASE)


def test_grid_is_every_combination_with_converted_values():
    found = grid("optim.lr=2e-4,1e-3", "teacher.bn=batch,running", "seed=0,1,2")
    assert found.seeds == (0, 1, 2)
    assert found.grid() == [{"optim.lr": lr, "teacher.bn": bn} for lr in (2e-4, 1e-3) for bn in ("batch", "running")]


def test_keys_that_hold_several_numbers_use_semicolons():
    assert grid("guidance.student_layers=0,2,4;0,3,5").grid() == [
        {"guidance.student_layers": (0, 2, 4)},
        {"guidance.student_layers": (0, 3, 5)},
    ]


def test_seed_of_the_configuration_is_the_only_one_by_default():
    assert grid("optim.lr=1e-3").seeds == (BASE.seed,)


@pytest.mark.parametrize("key", sorted(set(valid_keys()) - {"run_dir", "seed"}))
def test_every_key_can_be_swept(key):
    base = replace(BASE, {"augment.rand_augment": "rand-m9", "data.labels": "labels.csv"})
    value = get(base, key)
    values = value if isinstance(value, tuple) else [value]
    text = ",".join("none" if item is None else str(item).lower() for item in values)
    word = "backbone" if key == "optim.freeze" else 1  # where nothing is set
    assert read_space([f"{key}={text or word}"], None, base).axes[0].key == key


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.lrr=1", "unknown configuration key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("optim.lr=1e-3,fast", "optim.lr: expected a number, got 'fast'"),
        ("optim.lr=1e-3,-1", "optim.lr: expected a number above 0, got -1.0"),
        ("precision=fp8", "precision: expected one of auto, fp32, bf16, fp16-amp, got 'fp8'"),
        ("optim.lr", "expected KEY=V1,V2,..., got 'optim.lr'"),
        ("run_dir=a,b", "set --out for the whole sweep"),
    ],
)
def test_bad_axes_fail_with_the_key_and_the_fix(assignment, message):
    with pytest.raises(ValueError) as error:
        grid(assignment)
    assert message in str(error.value)


def test_a_key_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"optim.lr is given twice"):
        grid("optim.lr=1e-3", "optim.lr=2e-3")


def test_a_combination_that_makes_no_run_is_refused():
    with pytest.raises(ValueError, match="the teacher needs an input size"):
        grid("augment.teacher_size=0,16", "guidance.weight=0,2.5")


def test_selecting_on_the_test_images_is_refused():
    with pytest.raises(ValueError, match=r"add --eval.protocol holdout"):
        read_space(["optim.lr=1e-3"], None, load_recipe("cifar100-deit-ti-guided"))


FILE = """
optim.name: [adamw, sgd]
optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
optim.momentum: {low: 0.8, high: 0.95, step: 0.05, when: {optim.name: sgd}}
model.depth: {low: 2, high: 4}
guidance.student_layers: [[0, 1], [0, 2]]
seed: [3, 4]
"""


def test_sampled_settings_stay_in_range_and_respect_conditions(tmp_path):
    found = space(tmp_path, FILE.replace("model.depth: {low: 2, high: 4}", "model.depth: {low: 4, high: 6}"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    settings = [found.sample(study.ask(), BASE) for _ in range(40)]
    for changes in settings:
        assert 1e-4 <= changes["optim.lr"] <= 1e-2
        assert changes["model.depth"] in (4, 5, 6)
        assert changes["guidance.student_layers"] in ([0, 1], [0, 2])
        assert ("optim.momentum" in changes) == (changes["optim.name"] == "sgd")
    assert {changes["optim.name"] for changes in settings} == {"adamw", "sgd"}
    assert found.seeds == (3, 4) and not found.is_grid


def test_the_bases_own_values_are_those_that_a_sample_could_have(tmp_path):
    text = """
optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
optim.name: [sgd, adamw]
optim.momentum: {low: 0.5, high: 0.95, when: {optim.name: sgd}}
guidance.student_layers: [[0, 1, 2], [0, 3, 5]]
guidance.weight: [0, 1]
epochs: {low: 10, high: 90, step: 20}
optim.warmup_epochs: {low: 0, high: 10}
optim.weight_decay: {low: 0.01, high: 0.1, step: 0.01}
"""
    base = replace(BASE, {"epochs": 40, "optim.warmup_epochs": 4, "guidance.weight": 2.5})
    expected = {"optim.lr": base.optim.lr, "optim.name": "adamw", "guidance.student_layers": "[0, 3, 5]"}
    expected |= {"optim.warmup_epochs": 4, "optim.weight_decay": 0.05}
    assert space(tmp_path, text).own_values(base) == expected
    assert space(tmp_path, text).own_values(replace(base, {"epochs": 50, "optim.name": "sgd"})) == expected | {
        "optim.name": "sgd", "optim.momentum": 0.9, "epochs": 50,
    }  # fmt: skip


def test_space_survives_storage(tmp_path):
    found = space(tmp_path, FILE)
    assert Space.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lr: {low: 1.0}", "expected a list of choices or a mapping with low and high"),
        ("optim.lr: {low: 2.0, high: 1.0}", "expected low < high"),
        ("optim.lr: {low: 0.0, high: 1.0, log: true}", "low > 0 on a log scale"),
        ("optim.lr: {low: 0.1, high: 1.0, lgo: true}", "'lgo' is none of choices, low, high, log, step, when"),
        ("optim.name: {low: 0, high: 1}", "list choices instead"),
        ("seed: {low: 0, high: 9}", "list them, e.g. seed: [0, 1, 2]"),
        ("optim.momentum: {low: 0.1, high: 0.9, when: {optim.nam: sgd}}", "did you mean 'optim.name'"),
        ("optim.lr: {low: 0.1, high: .inf}", "optim.lr: high: expected a finite number, got inf"),
        ("optim.lr: {low: .nan, high: 1}", "optim.lr: low: expected a finite number, got nan"),
        ("optim.lr: {low: true, high: 1}", "optim.lr: low: expected a number, got True"),
        ("optim.lr: {low: 0.1, high: 1, step: .inf}", "optim.lr: step: expected a finite number, got inf"),
        ("epochs: {low: 1, high: 9, when: [1]}", "epochs: when: expected a mapping such as {optim.name: sgd}, got [1]"),
        ("epochs: {low: 1, high: 9}\nepochs: [3]", "line 2: epochs is given twice"),
        ("", "expected configuration keys with choices or ranges, got none"),
        ("- 3", "expected a mapping of keys, got list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_malformed_files_fail_with_the_fix(tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        space(tmp_path, text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("eval.protocol=paper,holdout", "eval.protocol: paper selects on the test images"),
        ("eval.protocol=paper", "eval.protocol: paper selects on the test images"),
        ("eval.holdout_fraction=0.1,0.2", "would be judged on different images"),
        ("data.labels=a.csv,b.csv", "would be judged on different images"),
        ("data.test_fraction=0.1,0.2", "would be judged on different images"),
        ("eval.metric=top1,macro_f1", "would be judged by different scores"),
    ],
)
def test_scores_on_different_images_are_not_compared(assignment, message):
    with pytest.raises(ValueError, match=message):
        read_space([assignment], None, BASE)


def test_a_base_of_the_papers_protocol_is_swept_where_the_sweep_says_holdout():
    base = replace(BASE, {"eval.protocol": "paper"})
    assert read_space(["eval.protocol=holdout", "optim.lr=1e-3,2e-3"], None, base).is_grid
    with pytest.raises(ValueError, match=r"add --eval\.protocol holdout"):
        read_space(["optim.lr=1e-3,2e-3"], None, base)
