"""Threads on the CPU: a command line spares other work, as the machine and the user's own choice allow."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lgfast.runtime import cores, threads


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of 8 cores, all of which this process may use, with nobody else; no choice by the user."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(cores, "LOADAVG", tmp_path / "loadavg")
    monkeypatch.setattr(cores, "CPU_MAX", tmp_path / "cpu.max")
    for name in threads.CHOICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_is_users_choice", False)
    monkeypatch.setattr(threads, "_chosen", [])
    set_running(tmp_path, 1)
    return tmp_path


def chosen_variables():
    return {name: os.environ[name] for name in threads.CHOICES if name in os.environ}


def set_running(folder, count):
    (folder / "loadavg").write_text(f"0.50 0.40 0.30 {count}/345 12345\n")


@pytest.mark.parametrize(("text", "expected"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_cores_are_bounded_by_the_containers_quota(machine, text, expected):
    (machine / "cpu.max").write_text(text)
    assert cores.num_cores() == expected


def test_an_idle_machine_keeps_the_own_choice_of_openmp(machine):
    threads.spare_other_work()
    assert not chosen_variables() and threads.choice() == ""


@pytest.mark.parametrize(("running", "expected"), [(3, "6"), (5, "4"), (9, "1"), (100, "1")])
def test_beside_other_work_the_free_cores_compute_and_threads_sleep(machine, running, expected):
    set_running(machine, running)
    threads.spare_other_work()
    assert chosen_variables() == {"OMP_NUM_THREADS": expected, "OMP_WAIT_POLICY": "passive"}
    assert f"with {expected} thread" in threads.choice()


def test_the_first_choice_stays_and_is_said_once(machine):
    """The package and its command line both choose."""
    set_running(machine, 5)
    threads.spare_other_work()
    set_running(machine, 9)
    threads.spare_other_work()
    assert os.environ["OMP_NUM_THREADS"] == "4" and threads.choice().count("other work") == 1


def test_other_work_counts_as_spread_over_all_cores(machine, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    set_running(machine, 17)
    assert cores.free_cores() == 6  # a quarter of 64 cores is busy, so a quarter of these 8


def test_the_users_choice_stands(machine, monkeypatch):
    set_running(machine, 9)
    monkeypatch.setattr(threads, "_is_users_choice", True)
    threads.spare_other_work()
    assert not chosen_variables()


def test_a_system_that_does_not_tell_counts_as_idle(machine):
    (machine / "loadavg").unlink()
    assert cores.free_cores() == 8


def test_only_command_lines_look_and_before_torch_is_loaded():
    code = """
import sys
sys.argv = [{name!r}]
import lgfast
print("torch" in sys.modules, lgfast._looked_at_load)
"""
    for name, looked in (("-m", True), ("script.py", False)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(name=name)], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"False {looked}\n"


@pytest.mark.parametrize(("recorded", "expected"), [(1, 1), (2, 2), (1000, 1), ("2", 1), (0, 1)])
def test_a_continued_run_computes_with_the_threads_it_began_with(machine, monkeypatch, recorded, expected):
    chosen = [1]
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    (machine / "environment.json").write_text(json.dumps({"cpu_threads": recorded}))
    threads.compute_as_before(str(machine))
    assert chosen[-1] == expected


@pytest.mark.parametrize("text", ["", "null", "[]", "{"])
def test_a_damaged_record_of_threads_changes_none(machine, monkeypatch, text):
    monkeypatch.delattr(torch, "set_num_threads")
    (machine / "environment.json").write_text(text)
    threads.compute_as_before(str(machine))
    assert not chosen_variables()
