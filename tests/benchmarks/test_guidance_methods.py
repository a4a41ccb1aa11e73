"""The comparison of methods beside guidance is paired and fair, and its table says what the runs say."""

from pathlib import Path

import pytest

from benchmarks import guidance_methods, tables
from lgfast.config import to_dict
from tests.benchmarks.test_figure import write

METHODS = list(guidance_methods.METHODS)


def test_runs_of_a_seed_differ_in_their_method_alone():
    configs = guidance_methods.method_configs(METHODS, 7, Path("out"), {"data.root": "data"})
    trees = [to_dict(config) for config in configs]
    for section in ("data", "teacher", "eval"):
        assert all(tree[section] == trees[0][section] for tree in trees)
    other_views = [name for name, tree in zip(METHODS, trees, strict=True) if tree["augment"] != trees[0]["augment"]]
    views = ["trivial-augment", "three-augment", "color-jitter", "vertical-flip", "mixup", "cutmix"]
    assert other_views == views
    assert {(tree["epochs"], tree["seed"]) for tree in trees} == {(15, 7)}
    assert len({config.run_dir for config in configs}) == len(METHODS)
    assert configs[0].eval.protocol == "holdout"  # the test images are for the recipe that wins


def test_every_run_is_in_one_group():
    configs = guidance_methods.method_configs(METHODS, 1, Path("out"), {})
    grouped = [config.name for group in guidance_methods.groups(configs) for config in group]
    assert sorted(grouped) == sorted(METHODS)
    sizes = {group[0].model.init: len(group) for group in guidance_methods.groups(configs)}
    assert sizes["mimetic"] == 2  # they share batches with each other, not with the rest


def test_an_unknown_method_is_named(capsys):
    with pytest.raises(SystemExit):
        guidance_methods.main(["--methods", "guided,magic"])
    assert "no method magic" in capsys.readouterr().err


def test_the_table_pairs_seeds_with_guidance_alone(tmp_path):
    scores = {"guided": {1: 20.0, 2: 22.0}, "muon": {1: 23.0, 2: 27.0}, "ema": {2: 20.5}}
    folder = tmp_path / "2026-11-30_any-cpu_methods"
    folder.mkdir()
    for method, seeds in scores.items():
        for seed, top1 in seeds.items():
            epochs = [{"epoch": 1, "val_top1": 1.0}, {"epoch": 2, "val_top1": top1}]
            write(folder / f"{method}-seed{seed}.summary.csv", epochs)
    lines = tables.methods(tmp_path).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [
        ["muon", "25.00 ± 2.83", "+4.00 ± 1.41", "2"],
        ["guided", "21.00 ± 1.41", "", "2"],
        ["ema", "20.50", "-1.50", "1"],
    ]
