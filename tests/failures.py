"""A test that fails is named at once, with the end of its traceback: tests that are stopped later still say it."""

import pytest

LINES = 25


class Failures:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\n{report.nodeid} failed, {report.when} took {report.duration:.0f} s; the end of it:")
            terminal.write_line("\n".join(report.longreprtext.splitlines()[-LINES:]))


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist has no terminal
        config.pluginmanager.register(Failures(config))
