"""Shared test set-up: the gpu marker, a fixed seed, and full float32 products in one order.

LGFAST_TEST_SEED (default 0) is the seed: with another one, what is random in a test is drawn anew.

torch is imported where it is used: the process of pytest-xdist that hands out the tests needs none.
"""

import functools
import gc
import multiprocessing
import os

import pytest

from tests.failures import pytest_configure  # noqa: F401  pytest calls it
from tests.skips import pytest_terminal_summary  # noqa: F401  pytest calls it

gc.disable()  # what the tests import stays: looking through it again and again takes a quarter of the collection


def pytest_xdist_auto_num_workers():
    """One more than cores: beside another busy process the tests get a larger share, and none waits for one test."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_finish():
    gc.freeze()  # nor does it lengthen a test's own gc.collect()
    gc.set_threshold(10_000)  # after so many new objects; after 700, as is usual, it takes a twentieth of the tests
    gc.enable()


def pytest_collection_modifyitems(config, items):
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # workers that begin with the long files end at the same time
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")  # without one, tests/emulation runs the same kernels
    for item in items:
        if item.get_closest_marker("gpu"):  # keywords would hold the name of the checkout's folder too
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def sound_gpu(request):
    """After a GPU test, check that its kernels ended without an error; else stop, as no later test of this process
    can."""
    import torch

    yield
    if not request.node.get_closest_marker("gpu") or not torch.cuda.is_available():
        return
    torch.cuda.set_sync_debug_mode("default")
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        request.session.shouldstop = f"the GPU cannot go on after {request.node.nodeid}"
        raise


@pytest.fixture(autouse=True)
def same_threads():
    """Every test computes with the same threads, whatever one before it chose: more than a worker's share spin."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread():
    """For files whose runs are too small to gain from several, or where the order of sums matters: their fixtures'
    runs too, which tests compare with their own."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fixed_seed():
    import torch

    torch.manual_seed(int(os.environ.get("LGFAST_TEST_SEED", "0")))
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True  # ways of running a step are compared bit for bit


@pytest.fixture
def forked_at_once(monkeypatch):
    """Processes come from a server that has imported torch, whatever way of starting them is asked for."""
    from tests.processes import context

    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: context)


@pytest.fixture
def counted_compiles(monkeypatch):
    """Counts what torch.compile compiles, and runs it as it is."""
    import torch
    from torch._dynamo.testing import CompileCounterWithBackend  # 2 s that few tests need

    counter = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    yield counter
    torch._dynamo.reset()
