"""Which worker gets which GPU and how many cores. The GPUs are made up."""

import signal
import subprocess
import sys

import pytest

from lgfast.runtime.interrupt import InterruptFlag
from lgfast.sweep import launch

WAIT = """import signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(3))
print("ready", flush=True)
signal.pause()"""


@pytest.fixture
def machine(monkeypatch):
    """Pretends to have the given GPUs and cores."""

    def pretend(gpus, cores=16, visible=None):
        monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(launch, "num_cores", lambda: cores)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return pretend


def gpus(environments):
    return [extra["CUDA_VISIBLE_DEVICES"] for extra in environments]


def test_one_worker_on_every_gpu(machine):
    machine(gpus=4)
    assert gpus(launch.worker_environments(1, 1)) == ["0", "1", "2", "3"]


def test_several_workers_share_a_gpu_and_the_cores(machine):
    machine(gpus=2, cores=16)
    environments = launch.worker_environments(1, 2)
    assert gpus(environments) == ["0", "1", "0", "1"]
    assert {extra["OMP_NUM_THREADS"] for extra in environments} == {"4"}


def test_a_scheduler_s_choice_of_gpus_is_kept(machine):
    machine(gpus=2, visible="GPU-5f2c,7")
    assert gpus(launch.worker_environments(1, 1)) == ["GPU-5f2c", "7"]


@pytest.mark.parametrize(
    ("visible", "seen", "names"),
    [
        ("2, 3", 2, ["2", "3"]),
        ("0,-1,1", 1, ["0"]),  # CUDA stops reading at what it does not know
        ("MIG-4a,MIG-7b", 1, ["MIG-4a", "MIG-7b"]),  # one process sees one instance
    ],
)
def test_only_gpus_that_cuda_gives_get_a_worker(machine, visible, seen, names):
    machine(gpus=seen, visible=visible)
    assert gpus(launch.worker_environments(1, 1)) == names


def test_workers_without_a_gpu_share_the_cores(machine):
    machine(gpus=0, cores=5)
    assert launch.worker_environments(2, 0) == [{"OMP_NUM_THREADS": "2"}] * 2
    assert launch.worker_environments(8, 0) == [{"OMP_NUM_THREADS": "1"}] * 8


@pytest.mark.parametrize("visible", [None, ""])
def test_workers_per_gpu_need_a_gpu(machine, visible):
    machine(gpus=0, visible=visible)
    with pytest.raises(ValueError, match="torch sees no CUDA device here; use --workers N"):
        launch.worker_environments(1, 2)


def test_an_interrupt_is_passed_on_once_and_codes_come_back():
    workers = [subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert all(worker.stdout.readline() == "ready\n" for worker in workers)
    flag, polls = InterruptFlag(), []

    def poll():
        polls.append(flag.requested)
        flag.requested = True

    assert launch.supervise(workers, flag, poll) == [3, 3]
    assert polls[0] is False
    assert all(worker.returncode != -signal.SIGINT for worker in workers)
