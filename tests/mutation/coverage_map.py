"""Which tests run which lines, in pytest's process and in the daemons and workers that the tests start."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from coverage import CoverageData
from coverage.exceptions import DataError

from tests.mutation import plugin
from tests.mutation.tree import Tree

EXCLUDED_TESTS = ("tests/benchmarks", "tests/corpus", "tests/devices", "tests/fuzz", "tests/interop", "tests/mutation")
"""They are slow, and tell little about the packages that are changed."""
WHAT_COUNTS = ("kaas_client/", "kaas_core/", "kaasd/", "examples/", "proto/", "tests/")
"""A change elsewhere does not change what a test runs."""
FILE_LIMIT_S = 600
"""For one test file, measured."""
RAN = (0, 1, 5)
"""Pytest's exit status where it came to the end: tests passed, some failed, there were none."""
SETTINGS = """\
[run]
parallel = true
data_file = {folder}/data
source = {tree}/kaasd
context = ${{{test_file}}}
core = ctrace
patch = _exit
sigterm = true
disable_warnings = no-data-collected, module-not-measured
"""


class Measured(TypedDict):
    """What is known of one test file."""

    seconds: dict[str, float]
    """Of each test that passed."""
    failed: list[str]
    """The tests that failed with no change at all; the file itself if it cannot be run, or not to its end."""
    lines: dict[str, dict[str, list[int]]]
    """Of each test and source file, the lines that run; under the test file's name those that run for any of its tests."""


class CoverageMap:
    """The tests that passed, how long they took, and the lines that they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self._tests_of_file: dict[str, list[str]] = {}
        self._contexts: dict[tuple[str, int], set[str]] = {}
        """Of each source file and line, the tests that ran it, and the test files of which some part did."""

    def add(self, measured: Measured) -> None:
        """Add what ``measure`` returned."""
        self.seconds |= measured["seconds"]
        self.failed += measured["failed"]
        for test in measured["seconds"]:
            self._tests_of_file.setdefault(test.partition("::")[0], []).append(test)
        for context, files in measured["lines"].items():
            for path, lines in files.items():
                for line in lines:
                    self._contexts.setdefault((path, line), set()).add(context)

    def tests(self, places: Iterable[tuple[str, int]]) -> dict[str, bool]:
        """Return the tests that ran any of these lines of files; False for those of which only the test file is known to."""
        contexts = {context for place in places for context in self._contexts.get(place, ())}
        found = {test: False for context in contexts for test in self._tests_of_file.get(context, ())}
        return found | {test: True for test in contexts if test in self.seconds}


def test_file_hashes(tree: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the test files to measure, each with a hash of it and of all that counts and is not a test file."""
    shared = hashlib.sha256(sys.version.encode())
    test_files = []
    for name in names:
        if name.startswith("tests/") and Path(name).match("test_*.py"):
            if not name.startswith(EXCLUDED_TESTS):
                test_files.append(name)
        elif name.startswith(WHAT_COUNTS) and not name.startswith(EXCLUDED_TESTS):
            shared.update(f"{name}\0".encode() + (tree / name).read_bytes())
    return {name: hashlib.sha256(shared.digest() + (tree / name).read_bytes()).hexdigest()[:24] for name in test_files}


def measure(tree: Tree, test_file: str) -> Measured:
    """Run one test file and return which test runs what. Raises ``OutOfTime``."""
    folder = tree.path.with_suffix(".coverage")
    folder.mkdir(exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    settings, record = folder / "settings", folder / "record"
    settings.write_text(SETTINGS.format(folder=folder, tree=tree.path, test_file=plugin.TEST_FILE))
    environ = {"COVERAGE_PROCESS_START": str(settings), plugin.TEST_FILE: test_file, plugin.RECORD: str(record)}
    status, output = tree.pytest([test_file, "--timeout=300"], environ, FILE_LIMIT_S)
    if status not in RAN or not record.exists():
        print(f"left out, cannot be run: {test_file}: exit status {status}\n{output[-2000:]}", file=sys.stderr)
        return Measured(seconds={}, failed=[test_file], lines={})
    tests = json.loads(record.read_text())
    lines: dict[str, dict[str, set[int]]] = {}
    for path in folder.glob("data.*"):
        data = CoverageData(str(path))
        try:
            data.read()
        except DataError:
            continue  # Its process was killed while it wrote.
        for source in data.measured_files():
            name = str(Path(source).relative_to(tree.path))
            for line, contexts in data.contexts_by_lineno(source).items():
                for context in contexts:
                    test = context.partition("|")[2] or test_file
                    lines.setdefault(test, {}).setdefault(name, set()).add(line)
        data.close()
    by_test = {test: {name: sorted(found) for name, found in files.items()} for test, files in lines.items()}
    return Measured(**tests, lines=by_test)
