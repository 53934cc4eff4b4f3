"""Mutation testing of the daemon's packages: ``python -m tests.mutation [--sample N] [--seed S] [--packages store,front]``.

A random sample of small changes, one at a time, each in a copy of the tree, each met by the tests that run the changed line. The
changes are mutmut's, used as a library; the rest is ours, because much of the daemon runs in child processes. mutmut chooses
tests by the calls that it sees in pytest's own process, so that it takes a worker's code for untested, and it changes neither
decorated functions nor module constants; cosmic-ray runs one command for every change, and makes the changes in the working tree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import queue
import random
import sys
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from tests.mutation import plugin
from tests.mutation.coverage_map import ROOT, CoverageMap, Tree, files_of_tree, measure, test_file_hashes
from tests.mutation.mutants import Candidate, Mutant, Source

PACKAGES = ("front", "worker", "store", "request", "api", "ipc")
BUILD = ROOT / "build/mutation"
ACCEPTED = Path(__file__).with_name("accepted.toml")
WANTED = 0.9
WORKERS = 2
TIME_FACTOR, LEAST_S, START_S = 5, 10, 30
"""A test may take this many times as long as without a change, and at least this; and pytest this long to start."""
OUTCOMES = ("killed", "survived", "timed out", "no coverage")

T = TypeVar("T")
R = TypeVar("R")


class Runner:
    """Copies of the tree and what is known of the tests."""

    def __init__(self, folder: Path, budget_s: float) -> None:
        self._names = files_of_tree()
        self._trees: queue.Queue[Tree] = queue.Queue()
        for tree in Tree.copies(folder, WORKERS, self._names):
            self._root = tree.path
            self._trees.put(tree)
        self._budget_s = budget_s
        self._coverage = CoverageMap()
        self._sources: dict[str, Source] = {}

    def sources(self, packages: Iterable[str]) -> list[Source]:
        """Return the source files of packages, or of parts of them as in ``store/writer.py``."""
        wanted = tuple(f"kaasd/{package}" for package in packages)
        return [self.source(name) for name in self._names if name.startswith(wanted) and name.endswith(".py")]

    def source(self, path: str) -> Source:
        if path not in self._sources:
            self._sources[path] = Source(self._root, path)
        return self._sources[path]

    def measure(self) -> None:
        """Measure all test files whose content, or whose subject, has changed since they were last measured."""
        hashes = test_file_hashes(self._root, self._names)
        cache = BUILD / "coverage"
        cache.mkdir(parents=True, exist_ok=True)
        missing = [name for name, digest in hashes.items() if not (cache / f"{digest}.json").exists()]

        def measured(tree: Tree, name: str) -> None:
            (cache / f"{hashes[name]}.json").write_text(json.dumps(measure(tree, name)))

        for number, _ in enumerate(self._each(measured, missing), 1):
            _progress(f"coverage: {number} of {len(missing)} test files")
        for old in cache.iterdir():
            if old.stem not in hashes.values():
                old.unlink()
        for digest in hashes.values():
            self._coverage.add(json.loads((cache / f"{digest}.json").read_text()))

    def run(self, mutants: list[Mutant]) -> Iterator[tuple[Mutant, str, str]]:
        """Yield each mutant with its outcome and what to say of it, in any order.

        Raises ``RuntimeError`` when tests fail with no change at all: nothing could be learnt then.
        """
        choices = [chosen for chosen, _ in map(self._choose, mutants) if chosen]
        if choices:
            tree = self._trees.get()
            status, output = _test(tree, min(choices, key=lambda chosen: sum(chosen.values())))
            self._trees.put(tree)
            if status != 0:
                raise RuntimeError(f"tests fail with no change at all: exit status {status}\n{output[-2000:]}")
        return self._each(self._run, mutants)

    def _run(self, tree: Tree, mutant: Mutant) -> tuple[Mutant, str, str]:
        chosen, left_out = self._choose(mutant)
        if not chosen:
            return mutant, "no coverage", ""
        target = tree.path / mutant.path
        original = target.read_text()
        target.write_text(mutant.source)
        try:
            status, output = _test(tree, chosen)
        finally:
            target.write_text(original)
        if status == 0:
            return mutant, "survived", f"{len(chosen)} tests" + (f", {left_out} more left out for time" if left_out else "")
        if status is None or "from pytest-timeout" in output:
            return mutant, "timed out", ""
        failures = (line for line in output.splitlines() if line.startswith(("FAILED tests/", "ERROR tests/")))
        return mutant, "killed", next(failures, output[-200:])

    def _choose(self, mutant: Mutant) -> tuple[dict[str, float], int]:
        """Return the tests that meet a mutant with their seconds, in order, and how many there was no time for."""
        lines, names = self.source(mutant.path).lines_to_run(mutant.line)
        places = {(mutant.path, line) for line in lines}
        if names:  # Set at import, which every test does: what counts is who uses it.
            places = {(path, line) for path in self._sources for line in self.source(path).lines_with(names)} or places
        tests = self._coverage.tests(places)
        seconds = self._coverage.seconds
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

        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                for future in as_completed([pool.submit(with_tree, item) for item in items]):
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)


def _test(tree: Tree, chosen: dict[str, float]) -> tuple[int | None, str]:
    """Run tests, given with their seconds, until one fails."""
    order = tree.path.with_suffix(".chosen")
    order.write_text(json.dumps({test: max(LEAST_S, TIME_FACTOR * seconds) for test, seconds in chosen.items()}))
    files = sorted({test.partition("::")[0] for test in chosen})
    status, output = tree.pytest(["-x", *files], {plugin.CHOSEN: str(order)}, START_S + TIME_FACTOR * sum(chosen.values()))
    if status == 5:
        raise RuntimeError(f"none of the chosen tests was found:\n{output[-2000:]}")
    return status, output


def sample(sources: list[Source], size: int, seed: int) -> list[Mutant]:
    """Choose mutants at random, one a line. The same seed chooses the same ones where the code around them has changed."""
    places: list[tuple[bytes, Source, Candidate]] = []
    for source in sources:
        for candidate in source.candidates():
            place = hashlib.sha256(f"{seed}\0{source.path}\0{candidate.identity}".encode()).digest()
            places.append((place, source, candidate))
    chosen: dict[tuple[str, int], Mutant] = {}
    for _, source, candidate in sorted(places, key=lambda entry: entry[0]):
        if len(chosen) < size and (source.path, candidate.line) not in chosen:
            mutant = source.mutant(candidate)
            if mutant is not None:
                chosen[source.path, candidate.line] = mutant
    print(f"{len(chosen)} of {len(places)} mutants in {len(sources)} files; --seed {seed}", flush=True)
    return list(chosen.values())


def report(results: list[tuple[Mutant, str, str]], seed: int) -> tuple[str, bool]:
    """Return the report as Markdown, and whether enough was killed."""
    entries = tomllib.loads(ACCEPTED.read_text()).get("mutant", [])
    reasons = {(entry["file"], entry["line"], entry["mutation"]): entry["reason"] for entry in entries}
    lines = ["# Mutation testing", "", f"{len(results)} mutants, `--seed {seed}`.", ""]
    lines += [f"| package | {' | '.join(OUTCOMES)} | accepted |", "|---|" + "--:|" * (len(OUTCOMES) + 1)]
    total: Counter[str] = Counter()
    for package in PACKAGES:
        count = Counter(
            "accepted" if outcome in ("survived", "no coverage") and mutant.key in reasons else outcome
            for mutant, outcome, _ in results
            if mutant.path.startswith(f"kaasd/{package}/")
        )
        total += count
        lines.append(f"| {package} | " + " | ".join(str(count[outcome]) for outcome in (*OUTCOMES, "accepted")) + " |")
    lines.append("| all | " + " | ".join(str(total[outcome]) for outcome in (*OUTCOMES, "accepted")) + " |")
    killed = total["killed"] + total["timed out"]
    judged = total.total() - total["accepted"]
    share = killed / judged if judged else 1.0
    lines += ["", f"Killed or timed out: {killed} of {judged}, {share:.1%}; at least {WANTED:.0%} are wanted.", ""]
    for mutant, outcome, note in sorted(results, key=lambda result: (result[0].path, result[0].line)):
        if outcome not in ("survived", "no coverage"):
            continue
        lines += [
            f"## {mutant.path}:{mutant.line} {outcome}",
            "",
            *([note, ""] if note else []),
            "```diff",
            mutant.diff,
            "```",
            "",
        ]
        if mutant.key in reasons:
            lines += [f"Accepted: {reasons[mutant.key]}", ""]
        else:
            entry = zip(("file", "line", "mutation", "reason"), (*mutant.key, ""), strict=True)
            lines += ["```toml", "[[mutant]]", *(f"{name} = {json.dumps(text)}" for name, text in entry), "```", ""]
    return "\n".join(lines), share >= WANTED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--sample", type=int, default=300, metavar="N", help="how many mutants (default: 300)")
    parser.add_argument("--seed", type=int, default=None, help="of the random sample (default: another each time)")
    parser.add_argument("--packages", default=",".join(PACKAGES), help="or parts of them, as in store,front/call_queue.py")
    parser.add_argument("--again", action="store_true", help="the mutants that were not killed the last time, and no others")
    parser.add_argument("--budget", type=float, default=120, metavar="S", help="seconds of tests for one mutant (default: 120)")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kaasd-mut-", ignore_cleanup_errors=True) as folder:
        runner = Runner(Path(folder), arguments.budget)
        sources = runner.sources(PACKAGES)
        chosen = runner.sources(arguments.packages.split(","))
        if not chosen:
            parser.error(f"no file is in {arguments.packages}; the packages are {', '.join(PACKAGES)}")
        if arguments.again:
            last = json.loads((BUILD / "survivors.json").read_text())
            seed, keys = last["seed"], {tuple(key) for key in last["keys"]}
            chosen = [source for source in sources if source.path in {path for path, _, _ in keys}]
            every = (source.mutant(candidate) for source in chosen for candidate in source.candidates())
            mutants = list({mutant.key: mutant for mutant in every if mutant is not None and mutant.key in keys}.values())
        else:
            mutants = sample(chosen, arguments.sample, seed)
        runner.measure()
        results = []
        for result in runner.run(mutants):
            results.append(result)
            mutant, outcome, note = result
            _progress(f"{len(results)} of {len(mutants)}: {mutant.path}:{mutant.line} {outcome} {note}")
    text, enough = report(results, seed)
    left = [mutant.key for mutant, outcome, _ in results if outcome in ("survived", "no coverage")]
    (BUILD / "survivors.json").write_text(json.dumps({"seed": seed, "keys": left}))
    (BUILD / "report.md").write_text(text)
    print(text)
    return 0 if enough else 1


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
