"""The examples in docstrings run, and every public function has one."""

import doctest
import importlib
import inspect

import pytest

import lgfast
import lgfast.api
import lgfast.ops

MODULES = (
    "ops.add_layer_norm", "ops.augment", "ops.bias_gelu", "ops.feature_mse", "ops.flat_adamw", "ops.mix",
    "ops.short_attention", "ops.unit_gradient", "ops.vit_block", "spec.augment",
    "fusion.attention", "fusion.layers", "optim.flat_adamw", "optim.schedule",
    "ops.reference.augment_plan", "models.factory", "guidance.stopping", "guidance.distillation", "config.keys",
    "config.recipes",
)  # fmt: skip
API = ("api.training", "api.networks")


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(f"lgfast.{name}"), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0 and found.failed == 0


def test_examples_of_the_api_run_in_turn(tmp_path, monkeypatch):
    """That of `train` leaves the run that the others use."""
    monkeypatch.chdir(tmp_path)
    for name in API:
        found = doctest.testmod(importlib.import_module(f"lgfast.{name}"))
        assert found.attempted > 0 and found.failed == 0


def public_functions():
    modules = (lgfast, lgfast.ops, lgfast.api)
    named = {name: getattr(module, name) for module in modules for name in module.__all__}
    return [pytest.param(thing, id=name) for name, thing in named.items() if inspect.isroutine(thing)]


@pytest.mark.parametrize("function", public_functions())
def test_every_public_function_has_an_example(function):
    assert ">>> " in inspect.getdoc(function)
    assert function.__module__.removeprefix("lgfast.") in MODULES + API


def test_a_renamed_operation_warns_with_its_new_name():
    with pytest.warns(DeprecationWarning, match=r"lgfast\.ops\.unsupported_reason is now short_attention_unsupported_"):
        old = lgfast.ops.unsupported_reason
    assert old is lgfast.ops.short_attention_unsupported_reason
    with pytest.raises(AttributeError, match=r"module 'lgfast\.ops' has no attribute 'short_atention'"):
        lgfast.ops.short_atention  # noqa: B018
