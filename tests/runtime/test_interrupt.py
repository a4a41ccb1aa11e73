"""What a second signal does."""

import os
import signal

import pytest

from lgfast.runtime.interrupt import InterruptFlag


@pytest.fixture(autouse=True)
def signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_repeated_signal_ends_the_process():
    flag = InterruptFlag().install()
    os.kill(os.getpid(), signal.SIGTERM)
    assert flag.requested and flag.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_torchrun_passes_on_too_does_not():
    flag = InterruptFlag().install(repeat_ends=False)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
    assert flag.requested and flag.signal_number == signal.SIGINT
