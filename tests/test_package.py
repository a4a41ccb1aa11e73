"""What an importing project gets: the version, the public names, and nothing before it is used."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lgfast
from tests.torch_process import run as run_python


def test_version_is_semantic():
    assert re.fullmatch(r"\d+\.\d+\.\d+", lgfast.__version__)


def test_every_public_name_is_listed_and_found():
    assert dir(lgfast) == lgfast.__all__
    assert all(getattr(lgfast, name) is not None for name in lgfast.__all__)
    with pytest.raises(AttributeError, match="module 'lgfast' has no attribute 'fuze'"):
        lgfast.fuze  # noqa: B018


def test_the_package_is_found_from_the_folder_that_holds_the_checkout(tmp_path):
    (tmp_path / "lgfast").symlink_to(Path(lgfast.__file__).resolve().parents[1])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import lgfast; print(lgfast.__version__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{lgfast.__version__}\n", done.stderr


def test_operations_need_torch_alone():
    heavy = ("timm", "torchvision", "tyro", "yaml", "optuna", "sklearn", "scipy", "torch._dynamo")
    code = f"import sys, lgfast.ops; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code).stdout == "[]\n"


def test_constant_results_are_marked_as_torch_marks_them():
    from lgfast.ops.constant import assume_constant_result

    ours, theirs = (mark(lambda: 1) for mark in (assume_constant_result, torch.compiler.assume_constant_result))
    assert vars(ours) == vars(theirs) != {}


NOTHING_TRAINED = """
import contextlib, io, sys
from lgfast.train import main
for arguments in (["--help"], ["--print-config"], ["--optim.lrr", "1"], ["--trials", "3"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(arguments)
    print(*arguments, [name for name in ("timm", "torchvision", "optuna") if name in sys.modules])
"""


def test_what_trains_nothing_does_not_wait_for_timm():
    done = run_python(NOTHING_TRAINED)
    assert done.stdout == "--help []\n--print-config []\n--optim.lrr 1 []\n--trials 3 []\n"


FROM_THREADS = """
import lgfast
from concurrent.futures import ThreadPoolExecutor
names = ["FlatAdamW", "ops", "fuse", "models", "fuse_layers", "FuseReport"] * 4
with ThreadPoolExecutor(len(names)) as pool:
    print(len(list(pool.map(lambda name: getattr(lgfast, name), names))))
"""


def test_names_may_be_used_first_by_several_threads():
    done = run_python(FROM_THREADS)
    assert done.stdout == "24\n", done.stderr
