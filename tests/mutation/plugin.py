"""What pytest does for mutation testing: it notes which test runs a line, or runs chosen tests in a given order.

Coverage is started in every process by coverage's own ``.pth`` file. Lines that run in pytest's process while a test runs are
that test's. All others are the whole file's: those of fixtures that tests share, and those of child processes, since a daemon may
serve many tests.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import coverage
import pytest

RECORD = "MUTATION_RECORD"
"""The environment variable with the file to which durations of passed tests are written, as ``{test: seconds}``."""
CHOSEN = "MUTATION_CHOSEN"
"""The environment variable with the file of the tests to run, in order, as ``{test: seconds after which it is stopped}``."""
TEST_FILE = "MUTATION_TEST_FILE"
"""The environment variable with the test file that is measured."""


class _Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._test = ""
        self._seconds: dict[str, float] = {}
        self._not_passed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._test = item.nodeid
        _switch_context(self._test)
        try:
            return (yield)
        finally:
            self._test = ""
            _switch_context("")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function":
            return (yield)
        _switch_context("")
        try:
            return (yield)
        finally:
            _switch_context(self._test)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0) + report.duration
        if not report.passed:
            self._not_passed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        passed = {test: seconds for test, seconds in self._seconds.items() if test not in self._not_passed}
        self._path.write_text(json.dumps(passed))


class _Chooser:
    def __init__(self, path: Path) -> None:
        self._limits: dict[str, float] = json.loads(path.read_text())

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        order = {test: place for place, test in enumerate(self._limits)}
        items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])
        for item in items:
            item.add_marker(pytest.mark.timeout(self._limits[item.nodeid]), append=False)


def pytest_configure(config: pytest.Config) -> None:
    if record := os.environ.get(RECORD):
        _pass_coverage_on()
        config.pluginmanager.register(_Recorder(Path(record)))
    if chosen := os.environ.get(CHOSEN):
        config.pluginmanager.register(_Chooser(Path(chosen)))


def _switch_context(context: str) -> None:
    current = coverage.Coverage.current()
    assert current is not None, "coverage did not start with the process"
    current.switch_context(context)


def _pass_coverage_on() -> None:
    """Have child processes measured too that are given an environment of their own."""
    start = subprocess.Popen.__init__
    inherited = {name: os.environ[name] for name in ("COVERAGE_PROCESS_START", TEST_FILE)}

    def measured(self: subprocess.Popen[Any], *args: Any, **options: Any) -> None:
        if options.get("env") is not None:
            options["env"] = {**options["env"], **inherited}
        start(self, *args, **options)

    subprocess.Popen.__init__ = measured  # type: ignore[method-assign]
