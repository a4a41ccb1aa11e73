"""The runs on fewer images differ by what the benchmark says, and by nothing else."""

import dataclasses

import pytest

from benchmarks import data_curves
from lgfast.config import load_recipe
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.sweep.group import group_key


@pytest.mark.parametrize("num_images", [600, 1500, 3000, 6000])
def test_runs_take_the_recipe_s_steps_and_differ_by_guidance_alone(num_images, tmp_path):
    recipe = load_recipe(data_curves.RECIPE)
    base, guided = data_curves.student_configs(num_images, 2, tmp_path, {})
    assert guided.epochs * num_images == recipe.epochs * recipe.data.train_limit
    assert guided.optim.warmup_epochs * num_images == recipe.optim.warmup_epochs * recipe.data.train_limit
    assert guided.eval.every_epochs == guided.epochs and guided.eval.protocol == "paper"
    assert base.guidance.weight == 0 < guided.guidance.weight
    same = dataclasses.replace(guided, guidance=base.guidance, name=base.name, run_dir=base.run_dir)
    assert same == base
    assert group_key(base) == group_key(guided)
    assert guided.teacher.recipe == recipe.teacher.recipe


def test_teacher_of_a_part_takes_the_steps_of_the_teacher_of_all_images(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(data_curves, "train_run", lambda config, **_: trained.append(config))
    monkeypatch.setattr(data_curves.shutil, "copy", lambda *_: None)
    student = data_curves.student_configs(1500, 2, tmp_path, {})[-1]
    data_curves.train_teacher(student, 1500, InterruptFlag())
    (teacher,) = trained
    recipe = load_recipe(load_recipe(data_curves.RECIPE).teacher.recipe)
    assert teacher.run_dir == student.teacher.checkpoint
    assert (teacher.epochs, teacher.optim.warmup_epochs) == (4 * recipe.epochs, 4 * recipe.optim.warmup_epochs)
    assert teacher.data.train_limit == student.data.train_limit
    assert (teacher.model.name, teacher.seed, teacher.optim.lr) == (recipe.model.name, recipe.seed, recipe.optim.lr)
