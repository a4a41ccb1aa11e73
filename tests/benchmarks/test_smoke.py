"""The smoke of every kernel: on the CPU all are right, and each way of being wrong is told, ended and switched off."""

import csv
from types import SimpleNamespace

import pytest
import torch

from benchmarks import smoke
from benchmarks.kernels import checks, table
from benchmarks.kernels.trials import TRIALS, Trial, fill_random
from lgfast import _extension
from lgfast._native import VARIANTS
from tests.benchmarks import planted_kernels

TABLE = "tests.benchmarks.planted_kernels"


def table_lines(text: str) -> list[list[str]]:
    """Kernel and status, of the lines that are sorted."""
    return [line.split()[:2] for line in text.split("the worst last:\n")[1].splitlines() if "LGFAST_" not in line]


def test_every_fault_is_told_and_switched_off_and_the_rest_is_examined(tmp_path, capsys):
    switches = tmp_path / "switches.txt"
    options = ["--table", TABLE, "--device", "cpu", "--seconds", "2", "--switches", str(switches), "--out"]
    assert smoke.main([*options, str(tmp_path)]) == 1
    said = capsys.readouterr().out
    lines = table_lines(said)
    assert [status for _, status in lines] == ["ok"] * 3 + ["wrong"] * 4 + ["missing"] + ["fails"] * 5 + ["hangs"]
    assert lines[-1] == ["hanging", "hangs"] and {name for name, _ in lines[:3]} == {"first", "last", "sound_fallback"}
    for text in (
        "target: error 1.5 times what is allowed",
        "target: error nan times what is allowed",
        "target: two runs differ",
        "target: a captured run differs from an eager one",
        # what torch says of an operation without a kernel
        "target: NotImplementedError: Could not run 'lgfast::missing' with arguments from the 'CUDA' backend.\n",
        "target: RuntimeError: an illegal memory access was encountered",
        "target: killed by signal 11",
        "target: no answer in time",
    ):
        assert text in said, text
    kernels = planted_kernels.KERNELS
    alone = ("hanging", "missing", "raising", "ending", *planted_kernels.PLANTED)
    off = {kernels[name].switch for name in alone} | {"short_attention_bwd_resident", "short_attention"}
    assert set(switches.read_text().split(",")) == off
    (path,) = tmp_path.glob("*_smoke.csv")
    found = list(csv.DictReader(path.open()))
    assert {row["op"] for row in found} == set(planted_kernels.KERNELS)
    by_name = {(row["op"], row["mode"]): row for row in found}
    assert by_name["first", "target"]["median_ms"] == "0.02" and not by_name["first", "target"]["error"]
    assert by_name["hanging", "hangs"]["error"] == "target: no answer in time"
    assert by_name["hanging", "small"]["error"] == ""  # what it still told


def test_a_kernel_that_passes_alone_leaves_nothing_switched_off(tmp_path, capsys):
    switches = tmp_path / "switches.txt"
    options = ["--table", TABLE, "--device", "cpu", "--switches", str(switches)]
    assert smoke.main([*options, "--kernels", "first,last"]) == 0
    assert switches.read_text() == "" and "LGFAST_DISABLE" not in capsys.readouterr().out
    assert smoke.main([*options, "--kernels", "second"]) == 2
    assert "--kernels: unknown 'second'; known: first, hanging" in capsys.readouterr().err


def test_the_table_names_the_switches_that_there_are():
    known = {name for op_name in _extension.cuda_op_names() for name in _extension._names(op_name)}
    named = [name for k in table.KERNELS.values() for name in (k.switch, k.whole, k.disabled) if name]
    switches = {name for names in named for name in names.split(",")}
    assert switches <= known | set(VARIANTS)
    assert set(VARIANTS) <= switches  # every variant is tried
    assert set(table.KERNELS) == set(TRIALS)
    order = list(table.KERNELS)
    for name, kernel in table.KERNELS.items():
        assert not kernel.fallback or order.index(kernel.fallback) < order.index(name)


def test_every_operation_with_a_kernel_is_tried():
    ops = {op_name.replace("_qkvpacked", "") for op_name in _extension.cuda_op_names()}
    switches = {name for k in table.KERNELS.values() for name in (k.switch, k.whole)}
    assert not [op for op in ops if switches.isdisjoint(_extension._names(op))]


@pytest.mark.skipif(not _extension.has_native(), reason="the reference rounds as it likes")
@pytest.mark.parametrize("name", TRIALS)
def test_the_kernels_of_the_cpu_are_right(name):
    for shape in smoke.SHAPES:
        found = table.examine(name, shape, "cpu")
        assert smoke.fault(shape, found) == "" and found["median_ms"] > 0


@pytest.mark.skipif(not _extension.has_native(), reason="what is wrong is planted beside what is right")
@pytest.mark.parametrize("name", TRIALS)
def test_a_result_that_is_slightly_wrong_is_seen(name):
    """One element of the first result, by twice its bound or the smallest step there is."""
    make, small, _ = TRIALS[name]
    trial = make(torch.device("cpu"), **small)
    results, truth = checks.kept(trial), trial.truth()
    assert checks.error_share(results, truth) <= 1
    bound = truth[0][1]
    wrong = results[0].double()
    wrong.view(-1)[-1] += 2.1 * bound or 2**-7
    assert checks.error_share([wrong, *results[1:]], truth) > 1
    wrong.view(-1)[-1] = float("nan")
    assert not checks.error_share([wrong, *results[1:]], truth) <= 1


@pytest.mark.parametrize("follows", [True, False])
def test_a_captured_run_must_see_inputs_that_came_later(monkeypatch, follows):
    x = torch.randn(4)
    trial = Trial(lambda: [x * 2], lambda: [(x.double() * 2, 1e-6)], lambda: fill_random([x]))

    def captured(make_run):
        """The replay of a graph: one that frozen inputs leave as it was captured."""
        run = make_run()
        run()
        return run if follows else lambda: None

    monkeypatch.setattr(checks, "captured", captured)
    monkeypatch.setattr(checks, "measured_times", lambda device, replay: {"median_ms": 1.0})
    found = checks.examined(trial, SimpleNamespace(type="cuda"))
    assert found["repeats"] and found["replays"] == follows
