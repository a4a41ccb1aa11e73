"""Try every key with every kind of value: each is taken as it is, or refused in a line that names the key.

The cases are made from the sections' fields, so a new key is tried with all of them too.
"""

import dataclasses
import math
from typing import Literal, get_args, get_origin

import pytest
import yaml

from lgfast.config import Config, from_dict, get, replace, to_dict, valid_keys
from lgfast.data.datasets import DATASET_NAMES
from lgfast.train import main

KEYS = valid_keys()
NUMBERS = (int, float)
NOT_NUMBERS = (math.nan, math.inf, -math.inf, 10**400, 1e300)
OTHERS = {
    "true": True, "text": "x\ty", "words": "a b", "map": {"a": 1}, "nested": [[1]], "none": None, "control": "a\x1bb",
    "empty": "", "empty list": [], "list": ["a", "b"], "minus one": -1, "zero": 0, "half": 0.5, "exponent": "1e400",
}  # fmt: skip
# keys that a negative number says something for
SIGNED = {"seed", "data.seed", "guidance.student_layers", "guidance.stop_threshold", "teacher.stages"}


def scalar(hint):
    """The type of a field, or of its items; and whether it may be none."""
    args = get_args(hint)
    if get_origin(hint) is tuple:
        return args[0], False
    return (args[0], True) if type(None) in args else (hint, False)


def outcome(key, value):
    """The value that a configuration then has, or the line that refuses it."""
    try:
        return get(replace(Config(), {key: value}), key), None
    except ValueError as error:
        return None, str(error)


def check_line(key, line):
    assert line is not None, "accepted"
    assert line.startswith(f"{key}: ") and "\n" not in line and len(line) < 300, line
    assert line.isprintable(), line


@pytest.mark.parametrize("key", KEYS)
def test_no_key_takes_what_is_no_number_of_32_bits(key):
    for value in NOT_NUMBERS:
        check_line(key, outcome(key, value)[1])
        if get_origin(KEYS[key]) is tuple:
            check_line(key, outcome(key, [value] * len(get(Config(), key) or "one"))[1])


@pytest.mark.parametrize("value", OTHERS.values(), ids=OTHERS)
def test_a_key_takes_a_value_as_it_is_or_names_itself(value):
    for key in KEYS:
        check_taken(key, value)


def check_taken(key, value):
    found, line = outcome(key, value)
    if line is not None:
        check_line(key, line)
        return
    hint, may_be_none = scalar(KEYS[key])
    if value is None:
        assert may_be_none and found is None
    elif get_origin(KEYS[key]) is tuple:
        assert list(found) == (
            value if isinstance(value, list) else [value] if isinstance(value, int) else value.split()
        )
    elif get_origin(hint) is Literal:
        assert found == value or (value is True and found == "on")
    elif hint is str:
        assert found == value and isinstance(value, str)
    else:
        assert found == value and isinstance(value, bool) == (hint is bool)
        assert value != -1 or key in SIGNED


@pytest.mark.parametrize("key", [key for key, hint in KEYS.items() if scalar(hint)[0] in NUMBERS and key not in SIGNED])
def test_no_key_but_seeds_and_places_takes_a_negative_number(key):
    value = [-1] * len(get(Config(), key)) if isinstance(get(Config(), key), tuple) else -1
    check_line(key, outcome(key, value)[1])


@pytest.mark.parametrize("key", [key for key, hint in KEYS.items() if scalar(hint)[0] in NUMBERS])
def test_text_is_judged_as_the_number_it_says(key):
    for value in ("nan", "inf", "-inf", "1e400", "true", "0x10", "one"):
        text = " ".join([value] * len(get(Config(), key) or "1")) if get_origin(KEYS[key]) is tuple else value
        check_line(key, outcome(key, text)[1])


@pytest.mark.parametrize("key", KEYS)
def test_a_section_made_in_python_checks_its_fields_too(key):
    section, _, leaf = key.rpartition(".")
    owner = getattr(Config(), section) if section else Config()
    for value in (math.nan, object(), [object()], b"x"):
        with pytest.raises(ValueError, match=f"^{leaf}: expected "):
            dataclasses.replace(owner, **{leaf: value})


@pytest.mark.parametrize("value", [".nan", "-.inf", "1e400", "{a: 1}", "[[[1]]]"])
@pytest.mark.parametrize("key", ["optim.lr", "epochs", "augment.mean", "data.loader", "data.download"])
def test_files_and_flags_say_the_same(tmp_path, capsys, key, value):
    tree = to_dict(Config())
    section, _, leaf = key.rpartition(".")
    (tree[section] if section else tree)[leaf] = yaml.safe_load(value)
    with pytest.raises(ValueError) as error:
        from_dict(tree)
    check_line(key, str(error.value))
    (tmp_path / "c.yaml").write_text(f"{section}:\n  {leaf}: {value}" if section else f"{leaf}: {value}")
    assert main(["--config", str(tmp_path / "c.yaml"), "--print-config"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'c.yaml'}: {error.value}\n"


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "../../x", "", "/tmp", "a\\b", "x" * 151, "a\nb", "a\x1b[2J", "caf\udce9"]
)
def test_the_name_of_a_run_is_that_of_one_folder(name):
    check_line("name", outcome("name", name)[1])


@pytest.mark.parametrize("name", ["digits", "a b", "été", "-x", "...x", "x..", "a.b"])
def test_other_names_are_free(name):
    assert outcome("name", name) == (name, None)


@pytest.mark.parametrize("device", ["nvidia", "cuda:", "cuda:-1", "cuda:x", "mps", " cpu"])
def test_devices_are_named_as_torch_names_them(device):
    check_line("device", outcome("device", device)[1])


def test_the_datasets_are_those_that_can_be_loaded():
    assert get_args(KEYS["data.dataset"]) == DATASET_NAMES
