"""A clock that tests move by hand."""


class Clock:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def replaced_clock(monkeypatch, module):
    """A clock that `module` reads in place of the system's until the test ends."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock
