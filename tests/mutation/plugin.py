"""What pytest does for mutation testing: it notes which test runs a line, or runs chosen tests in a given order.

Coverage is started in every process by ``start/sitecustomize.py``. Lines that run in pytest's process while a test runs are
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
"""The environment variable with the file to which the seconds of tests that passed are written, and which failed."""
CHOSEN = "MUTATION_CHOSEN"
"""The environment variable with the file of the tests to run, in order, as ``{test: seconds after which it is stopped}``."""
TEST_FILE = "MUTATION_TEST_FILE"
"""The environment variable with the test file that is measured."""


class _Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._test = ""
        self._seconds: dict[str, float] = {}
        self._outcomes: dict[str, set[str]] = {}

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
        self._outcomes.setdefault(report.nodeid, set()).add(report.outcome)

    def pytest_sessionfinish(self) -> None:
        passed = {test: seconds for test, seconds in self._seconds.items() if self._outcomes[test] == {"passed"}}
        failed = [test for test, outcomes in self._outcomes.items() if "failed" in outcomes]
        self._path.write_text(json.dumps({"seconds": passed, "failed": failed}))


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
    _pass_on("PYTHONPATH", "COVERAGE_PROCESS_START", TEST_FILE)
    if record := os.environ.get(RECORD):
        config.pluginmanager.register(_Recorder(Path(record)))
    if chosen := os.environ.get(CHOSEN):
        config.pluginmanager.register(_Chooser(Path(chosen)))


def _switch_context(context: str) -> None:
    current = coverage.Coverage.current()
    assert current is not None, "coverage did not start with the process"
    current.switch_context(context)


def _pass_on(*names: str) -> None:
    """Pass environment variables on to child processes too that are given an environment of their own."""
    start = subprocess.Popen.__init__
    inherited = {name: os.environ[name] for name in names if name in os.environ}

    def with_inherited(self: subprocess.Popen[Any], *args: Any, **options: Any) -> None:
        if options.get("env") is not None:
            options["env"] = inherited | dict(options["env"])
        start(self, *args, **options)

    subprocess.Popen.__init__ = with_inherited  # type: ignore[method-assign]
