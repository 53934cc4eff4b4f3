"""Runs the tests that meet each mutant, several mutants at a time, and keeps what came of it for the next run."""

from __future__ import annotations

import hashlib
import json
import queue
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.mutation import plugin
from tests.mutation.coverage_map import CoverageMap, measure, test_file_hashes
from tests.mutation.mutants import Mutant, Source
from tests.mutation.tree import ROOT, Tree, files_of_tree

BUILD = ROOT / "build/mutation"
TIME_FACTOR, LEAST_S, START_S = 5, 10, 30
"""A test may take this many times as long as without a change, and at least this; and pytest this long to start."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant."""

    what: str
    """``killed``, ``survived``, ``timed out`` or ``no coverage``."""
    note: str = ""

    @property
    def is_noticed(self) -> bool:
        return self.what in ("killed", "timed out")


class Runner:
    """Copies of the tree and what is known of the tests."""

    def __init__(self, folder: Path, jobs: int, budget_s: float, deadline: float) -> None:
        names = files_of_tree()
        trees = Tree.copies(folder, jobs, names, deadline)
        self.coverage = CoverageMap()
        self._hashes = test_file_hashes(trees[0].path, names)
        self._sources = {
            name: Source(trees[0].path, name) for name in names if name.startswith("kaasd/") and name.endswith(".py")
        }
        self._trees: queue.Queue[Tree] = queue.Queue()
        for tree in trees:
            self._trees.put(tree)
        self._jobs = jobs
        self._budget_s = budget_s

    def sources(self, packages: Iterable[str]) -> list[Source]:
        """Return the source files of packages, or of parts of them as in ``store/writer.py``."""
        wanted = tuple(f"kaasd/{package}" for package in packages)
        return [source for name, source in self._sources.items() if name.startswith(wanted)]

    def measure(self) -> None:
        """Measure all test files whose content, or whose subject, has changed since they were last measured."""
        folder = BUILD / "coverage"
        files = {name: folder / f"{digest}.json" for name, digest in self._hashes.items()}
        missing = [name for name, file in files.items() if not file.exists()]
        for number, _ in enumerate(self._each(lambda tree, name: _keep(files[name], measure(tree, name)), missing), 1):
            progress(f"coverage: {number} of {len(missing)} test files")
        for old in set(folder.iterdir()) - set(files.values()):
            old.unlink()
        for file in files.values():
            self.coverage.add(json.loads(file.read_text()))

    def run(self, mutants: list[Mutant]) -> Iterator[tuple[Mutant, Outcome]]:
        """Yield each mutant with its outcome, in any order; one that is known from an earlier run is not run again.

        Raises ``OutOfTime``, and ``RuntimeError`` when tests fail with no change at all: nothing could be learnt then.
        """
        choices = [chosen for chosen, _ in map(self._choose, mutants) if chosen]
        if choices:
            tree = self._trees.get()
            outcome = _meet(tree, min(choices, key=lambda chosen: sum(chosen.values())))
            self._trees.put(tree)
            if outcome.is_noticed:
                raise RuntimeError(f"tests fail with no change at all: {outcome.note}")
        return self._each(self._run, mutants)

    def _run(self, tree: Tree, mutant: Mutant) -> tuple[Mutant, Outcome]:
        chosen, left_out = self._choose(mutant)
        if not chosen:
            return mutant, Outcome("no coverage")
        content = [mutant.path, mutant.source, *chosen, *(self._hashes[name] for name in _files(chosen))]
        kept = BUILD / "results" / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]}.json"
        if kept.exists():
            return mutant, Outcome(**json.loads(kept.read_text()))
        target = tree.path / mutant.path
        original = target.read_text()
        target.write_text(mutant.source)
        try:
            outcome = _meet(tree, chosen)
        finally:
            target.write_text(original)
        if outcome.what == "survived" and left_out:
            outcome = Outcome("survived", f"{outcome.note}, {left_out} more left out for time")
        _keep(kept, asdict(outcome))
        return mutant, outcome

    def _choose(self, mutant: Mutant) -> tuple[dict[str, float], int]:
        """Return the tests that meet a mutant with their seconds, in order, and how many there was no time for."""
        lines, names = self._sources[mutant.path].lines_to_run(mutant.line)
        places = {(mutant.path, line) for line in lines}
        if names:  # Set at import, which every test does: what counts is who uses it.
            places = {(path, line) for path, source in self._sources.items() for line in source.lines_with(names)} or places
        tests = self.coverage.tests(places)
        seconds = self.coverage.seconds
        of_file: defaultdict[str, float] = defaultdict(float)
        for test in tests:
            of_file[test.partition("::")[0]] += seconds[test]
        package = f"tests/{mutant.path.split('/')[1]}/"

        def rank(test: str) -> tuple[Any, ...]:
            file = test.partition("::")[0]
            return not test.startswith(package), of_file[file], file, not tests[test], seconds[test]

        chosen: dict[str, float] = {}
        spent = 0.0
        for test in sorted(tests, key=rank):
            if not chosen or spent + seconds[test] <= self._budget_s:
                chosen[test] = seconds[test]
                spent += seconds[test]
        return chosen, len(tests) - len(chosen)

    def _each(self, function: Callable[[Tree, T], R], items: list[T]) -> Iterator[R]:
        """Yield the results of ``function`` for all items, some at a time, each in a tree of its own."""

        def with_tree(item: T) -> R:
            tree = self._trees.get()
            try:
                return function(tree, item)
            finally:
                self._trees.put(tree)

        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                for future in as_completed([pool.submit(with_tree, item) for item in items]):
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _meet(tree: Tree, chosen: dict[str, float]) -> Outcome:
    """Run tests, given with their seconds. One that fails must fail twice: on a busy machine some fail without a reason."""
    left = chosen
    unsure = 0
    while left:
        status, output = _test(tree, left)
        if status is None:
            return Outcome("timed out")
        if status in (0, 5):  # All passed, or there are none of that name any more.
            break
        line = next((line for line in output.splitlines() if line.startswith(("FAILED tests/", "ERROR tests/"))), "")
        failed = max((test for test in left if line.startswith((f"FAILED {test}", f"ERROR {test}"))), key=len, default=None)
        if failed is None:
            return Outcome("killed", line or output.strip().rpartition("\n")[2])
        status, output = _test(tree, {failed: left[failed]})
        if status != 0:
            return Outcome("timed out" if status is None or "from pytest-timeout" in output else "killed", line)
        tests = list(left)
        left = {test: left[test] for test in tests[tests.index(failed) + 1 :]}
        unsure += 1
    return Outcome("survived", f"{len(chosen)} tests" + (f", {unsure} of which failed only once" if unsure else ""))


def _test(tree: Tree, chosen: dict[str, float]) -> tuple[int | None, str]:
    """Run tests until one fails. Return pytest's exit status, None if they take too long, and its output."""
    order = tree.path.with_suffix(".chosen")
    order.write_text(json.dumps({test: max(LEAST_S, TIME_FACTOR * seconds) for test, seconds in chosen.items()}))
    limit_s = START_S + TIME_FACTOR * sum(chosen.values())
    return tree.pytest(["-x", *_files(chosen)], {plugin.CHOSEN: str(order)}, limit_s)


def _files(tests: Iterable[str]) -> list[str]:
    return sorted({test.partition("::")[0] for test in tests})


def _keep(file: Path, value: Any) -> None:
    """Write a file as JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{threading.get_ident()}")
    new.write_text(json.dumps(value))
    new.replace(file)
