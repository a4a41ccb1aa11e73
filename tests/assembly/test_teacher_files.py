"""A teacher that is read from a file: which of its weights, and of which network."""

from types import SimpleNamespace

import pytest
import torch

from lgfast.assembly.teachers import load_teacher, teacher_config
from lgfast.config import Config, replace
from lgfast.models import create_model
from lgfast.records.checkpoint import CheckpointError
from tests.models.pycls_files import pyth_state, resnet_names, save

IMAGES = SimpleNamespace(num_classes=4, class_names=("a", "b", "c", "d"))


@pytest.fixture
def file(tmp_path):
    """A ResNet-8 of the paper's code whose moving average erred less."""
    state = pyth_state(create_model("cifar_resnet8", num_classes=4), list(resnet_names(3, 1)))
    average = {name: torch.zeros_like(value) for name, value in state.items()}
    save(tmp_path / "model.pyth", state, ema_state=average, ema_err=1.0)
    return tmp_path / "model.pyth", state


def load(path, **changes):
    config = replace(Config(), {"teacher.checkpoint": str(path), "augment.teacher_size": 32} | changes)
    return load_teacher(config, path, IMAGES, torch.device("cpu"))


def test_a_teacher_is_never_the_moving_average(file):
    path, state = file
    assert torch.equal(load(path).model.fc.weight, state["head.fc.weight"])


def test_a_file_that_is_none_is_named_with_the_key(tmp_path):
    (tmp_path / "model.pyth").touch()
    with pytest.raises(
        CheckpointError, match=r"^teacher\.checkpoint: .*model\.pyth: not a readable PyTorch checkpoint"
    ):
        load(tmp_path / "model.pyth")
    with pytest.raises(CheckpointError, match=r"^teacher\.checkpoint: no checkpoint at .*nowhere"):
        load(tmp_path / "nowhere")


def test_an_unknown_recipe_is_named_with_the_key():
    with pytest.raises(ValueError, match=r"^teacher\.recipe: unknown recipe 'nowhere'"):
        teacher_config(replace(Config(), {"teacher.recipe": "nowhere"}))


def test_a_file_of_another_network_than_the_named_one_is_refused(file):
    path, _ = file
    assert load(path, **{"teacher.name": "cifar_resnet8"}) is not None
    with pytest.raises(CheckpointError, match=r"model\.pyth holds cifar_resnet8, and teacher\.name asks for resnet18"):
        load(path, **{"teacher.name": "resnet18"})
