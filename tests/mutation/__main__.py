"""Mutation testing of the daemon's packages: ``python -m tests.mutation [--sample N] [--seed S] [--packages store,front]``.

A random sample of small changes, one at a time, each in a copy of the tree, each met by the tests that run the changed line. What
was measured of the tests, and what became of a mutant, is kept in ``build/mutation``: the same command line goes on where it was
cut off, and runs again only what has changed. ``report.txt`` there is written as it goes.

The changes are mutmut's, used as a library; the rest is ours, because much of the daemon runs in child processes. mutmut chooses
tests by the calls that it sees in pytest's own process, so that it takes a worker's code for untested, and it changes neither
decorated functions nor module constants; cosmic-ray runs one command for every change, and makes the changes in the working tree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.mutation.mutants import Candidate, Mutant, Source
from tests.mutation.report import PACKAGES, WANTED, report
from tests.mutation.runner import BUILD, Outcome, Runner, progress
from tests.mutation.tree import OutOfTime

SURVIVORS = BUILD / "survivors.json"
DONE, TOO_FEW, CUT_OFF = 0, 1, 3
"""Exit statuses; 2 is that of a wrong command line."""


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


def last_survivors(sources: list[Source]) -> tuple[list[Mutant], int]:
    """Return the mutants of the last run that were not noticed, where their lines still stand, and the seed of that run."""
    last = json.loads(SURVIVORS.read_text())
    keys = {tuple(key) for key in last["keys"]}
    found: dict[tuple[str, str, str], Mutant] = {}
    for source in sources:
        first_lines = {removed.partition("\n")[0] for path, removed, _ in keys if path == source.path}
        lines = [line.strip() for line in source.text.splitlines()]
        for candidate in source.candidates() if first_lines else ():
            # Making one takes 0.1 s, so only those are made that begin where one of the last did.
            if not first_lines.isdisjoint(lines[candidate.line - 1 : candidate.line + candidate.identity.count("\n")]):
                mutant = source.mutant(candidate)
                if mutant is not None and mutant.key in keys:
                    found[mutant.key] = mutant
    return list(found.values()), last["seed"]


def run(runner: Runner, mutants: list[Mutant], seed: int) -> int:
    """Run mutants, write the report as it goes, and return the exit status. Raises ``OutOfTime``."""
    results: list[tuple[Mutant, Outcome]] = []
    share = 1.0
    for mutant, outcome in runner.run(mutants):
        results.append((mutant, outcome))
        progress(f"{len(results)} of {len(mutants)}: {mutant.path}:{mutant.line} {outcome.what} {outcome.note}")
        text, share = report(results, len(mutants), seed, runner.coverage.failed)
        (BUILD / "report.txt").write_text(text)
        SURVIVORS.write_text(
            json.dumps({"seed": seed, "keys": [mutant.key for mutant, found in results if not found.is_noticed]})
        )
    print((BUILD / "report.txt").read_text())
    return DONE if share >= WANTED else TOO_FEW


def main() -> int:
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--sample", type=int, default=300, metavar="N", help="how many mutants (default: 300)")
    parser.add_argument("--seed", type=int, default=None, help="of the random sample (default: another each time)")
    parser.add_argument("--packages", default=",".join(PACKAGES), help="or parts of them, as in store,front/call_queue.py")
    parser.add_argument("--again", action="store_true", help="the mutants that were not noticed the last time, and no others")
    parser.add_argument("--measure-only", action="store_true", help="find out which tests run which lines, and end")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many run at a time (default: 2)")
    parser.add_argument("--budget", type=float, default=120, metavar="S", help="seconds of tests for one mutant (default: 120)")
    parser.add_argument("--limit-s", type=float, default=math.inf, metavar="S", help="stop after this time (default: none)")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kaasd-mut-", ignore_cleanup_errors=True) as folder:
        try:
            runner = Runner(Path(folder), arguments.jobs, arguments.budget, start + arguments.limit_s)
            sources = runner.sources(arguments.packages.split(","))
            if not sources:
                parser.error(f"no file is in {arguments.packages}; the packages are {', '.join(PACKAGES)}")
            runner.measure()
            if arguments.measure_only:
                return DONE
            if arguments.again:
                mutants, seed = last_survivors(runner.sources(PACKAGES))
            else:
                mutants = sample(sources, arguments.sample, seed)
            return run(runner, mutants, seed)
        except OutOfTime:
            progress(f"cut off after {arguments.limit_s:g} s; the same command, with --seed {seed}, goes on from here")
            return CUT_OFF


if __name__ == "__main__":
    sys.exit(main())
