"""The examples in docstrings run, and every public function has one.

Those of lgfast.api need a trained network; tests/test_examples.py runs them, in the notebook.
"""

import doctest
import importlib
import inspect

import pytest

import lgfast
import lgfast.ops

MODULES = (
    "ops.add_layer_norm", "ops.augment", "ops.bias_gelu", "ops.feature_mse", "ops.flat_adamw", "ops.mix",
    "ops.short_attention", "spec.augment", "fusion.attention", "fusion.layers", "optim.flat_adamw", "optim.schedule",
    "ops.reference.augment_plan", "models.factory", "guidance.stopping", "guidance.distillation", "config.keys",
    "config.recipes",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(f"lgfast.{name}"), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0 and found.failed == 0


def public_functions():
    named = {name: getattr(lgfast, name) for name in lgfast.__all__} | {
        name: getattr(lgfast.ops, name) for name in lgfast.ops.__all__
    }
    functions = {name: thing for name, thing in named.items() if inspect.isroutine(thing)}
    return [pytest.param(f, id=name) for name, f in functions.items() if not f.__module__.startswith("lgfast.api.")]


@pytest.mark.parametrize("function", public_functions())
def test_every_public_function_has_an_example(function):
    assert ">>> " in inspect.getdoc(function)
    assert function.__module__.removeprefix("lgfast.") in MODULES


def test_a_renamed_operation_warns_with_its_new_name():
    with pytest.warns(DeprecationWarning, match=r"lgfast\.ops\.unsupported_reason is now short_attention_unsupported_"):
        old = lgfast.ops.unsupported_reason
    assert old is lgfast.ops.short_attention_unsupported_reason
    with pytest.raises(AttributeError, match=r"module 'lgfast\.ops' has no attribute 'short_atention'"):
        lgfast.ops.short_atention  # noqa: B018
