"""Which tests run which lines, in pytest's process and in the daemons and workers that the tests start."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from coverage import CoverageData
from coverage.exceptions import DataError

from tests.mutation import plugin

ROOT = Path(__file__).parents[2]
EXCLUDED_TESTS = ("tests/benchmarks", "tests/corpus", "tests/devices", "tests/fuzz", "tests/interop", "tests/mutation")
"""They are slow, and tell little about the packages that are changed."""
WHAT_COUNTS = ("kaas_client/", "kaas_core/", "kaasd/", "examples/", "proto/", "tests/")
"""A change elsewhere does not change what a test runs."""
MARKS = "not gpu and not slow"
FILE_LIMIT_S = 600
"""For one test file, measured."""
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
    lines: dict[str, dict[str, list[int]]]
    """Of each test and source file, the lines that run; under the test file's name those that run for any of its tests."""


class Tree:
    """A copy of the working tree in which code can be changed. Uncommitted files are in it, ignored ones are not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def copies(cls, folder: Path, count: int, names: Iterable[str]) -> list[Tree]:
        """Make copies of these files, all of them alike although somebody may be editing the files."""
        path = folder / "0"
        for name in names:
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
        # By their hash, not by their time, does Python know that sources have changed: two changes may fall into one second.
        packages = ["kaasd", "kaas_core", "kaas_client", "proto", "examples"]
        compile_all = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", *packages]
        subprocess.run(compile_all, cwd=path, check=True)
        return [cls(path), *(cls(shutil.copytree(path, folder / str(number))) for number in range(1, count))]

    def pytest(self, arguments: Sequence[str], environ: dict[str, str], limit_s: float) -> tuple[int | None, str]:
        """Run pytest here. Return its exit status, None past ``limit_s``, and its output."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", plugin.__name__, "-m", MARKS]
        python_path = os.pathsep.join([str(self.path), str(self.path / "proto")])
        with subprocess.Popen(
            [*command, f"--basetemp={self.path}.tmp", *arguments],
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": python_path, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return None, process.communicate()[0]
            finally:
                with suppress(ProcessLookupError):  # What the tests have left running.
                    os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, output


class CoverageMap:
    """The tests that passed, how long they took, and the lines that they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._tests_of_file: dict[str, list[str]] = {}
        self._contexts: dict[tuple[str, int], set[str]] = {}
        """Of each source file and line, the tests that ran it, and the test files of which some part did."""

    def add(self, measured: Measured) -> None:
        """Add what ``measure`` returned."""
        self.seconds |= measured["seconds"]
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


def files_of_tree() -> list[str]:
    """Return the names of all files of the working tree that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in listing.split("\0") if name and (ROOT / name).is_file()})


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
    """Run one test file and return which test runs what. Raises ``RuntimeError`` when it cannot be run."""
    folder = tree.path.with_suffix(".coverage")
    folder.mkdir(exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    settings, seconds = folder / "settings", folder / "seconds"
    settings.write_text(SETTINGS.format(folder=folder, tree=tree.path, test_file=plugin.TEST_FILE))
    environ = {"COVERAGE_PROCESS_START": str(settings), plugin.TEST_FILE: test_file, plugin.RECORD: str(seconds)}
    status, output = tree.pytest([test_file, "--timeout=300"], environ, FILE_LIMIT_S)
    if not seconds.exists():
        raise RuntimeError(f"{test_file} cannot be measured: exit status {status}\n{output[-2000:]}")
    for failure in output.splitlines():
        if failure.startswith(("FAILED tests/", "ERROR tests/")):
            print(f"left out, fails with no change at all: {failure}", file=sys.stderr)
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
    return Measured(seconds=json.loads(seconds.read_text()), lines=by_test)
