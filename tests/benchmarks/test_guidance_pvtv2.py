"""The ways to guide PVTv2 that are compared differ by what their names say."""

from pathlib import Path

import pytest

from benchmarks import guidance_pvtv2, tables
from lgfast.config import load_recipe, to_dict
from tests.benchmarks.test_figure import write

VARIANTS = list(guidance_pvtv2.METHODS)


def test_variants_of_a_seed_differ_by_guidance_and_views_alone():
    configs = guidance_pvtv2.method_configs(VARIANTS, 7, Path("out"), {"data.root": "data"})
    trees = {config.name: to_dict(config) for config in configs}
    for section in ("model", "optim", "data", "eval"):
        assert all(tree[section] == trees["guided"][section] for tree in trees.values())
    strong = to_dict(load_recipe(guidance_pvtv2.RECIPE))["augment"] | {"image_size": 64, "teacher_size": 32}
    for name, tree in trees.items():
        assert (tree["augment"] == strong) == name.startswith("strong-views")
        assert (tree["guidance"]["weight"] == 0) == name.endswith("base")
    assert trees["guided"]["eval"]["protocol"] == "holdout" and not trees["guided"]["log"]["report"]


def test_an_unknown_method_is_named(capsys):
    with pytest.raises(SystemExit):
        guidance_pvtv2.main(["--methods", "guided,magic"])
    assert "no method magic" in capsys.readouterr().err


def test_the_table_has_the_folders_of_its_kind_alone(tmp_path):
    for kind, top1 in (("pvtv2", 20.0), ("methods", 30.0)):
        folder = tmp_path / f"2026-11-30_any-cpu_{kind}"
        folder.mkdir()
        write(folder / "guided-seed1.summary.csv", [{"epoch": 1, "val_top1": top1}])
    assert "| guided | 20.00 |  | 1 |" in tables.pvtv2(tmp_path)
    assert "| guided | 30.00 |  | 1 |" in tables.methods(tmp_path)
