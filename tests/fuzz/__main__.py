"""The fuzzer's command: ``python -m tests.fuzz refused|make|check|compare|keep``; ``tests.fuzz.record`` runs on a GPU."""

from __future__ import annotations

import argparse
import multiprocessing
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.fuzz import batch, cases, forms
from tests.fuzz.compare import compare_batch, exact_programs
from tests.fuzz.program import HEADER, Program

RECORDED = Path(__file__).with_name("recorded")
"""What an H100 made of programs, for the tests."""


def _assemble(text: str, folder: Path) -> list[tuple[int, str]]:
    """Return the lines that ptxas refuses, and why."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "module.ptx"
    path.write_text(text)
    command = ["ptxas", "-arch=sm_90", "-O0", str(path), "-o", "/dev/null"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return [(int(line), message) for line, message in re.findall(r"line (\d+); (?:error|fatal) *: (.*)", result.stderr)]


def note_refused(folder: Path) -> int:
    """Write the file of mnemonics that the table has and ptxas refuses."""
    program = Program("refused")
    lines, mnemonics = [], []
    for form in (*forms.weighted(False)[0], *forms.weighted(True)[0]):
        for match in forms.variants(form):
            with program.step(match.mnemonic) as step:
                lines.append(program.instruction(match)[0][-1 if match.form.suspends else 0])
            mnemonics.append(match.mnemonic)
            step.reads.clear()
    program.steps.clear()
    head = program.text("all").partition("mov.u32 %thread")[0]
    before = (HEADER + head).count("\n")
    refused = {mnemonics[line - before - 1] for line, _ in _assemble(f"{HEADER}{head}" + "\n".join([*lines, "}"]), folder)}
    forms.REFUSED_FILE.write_text("\n".join(sorted(refused)) + "\n")
    print(f"{len(mnemonics)} mnemonics, {len(refused)} of them refused")
    return 0


def check(folder: Path, numbers: range) -> int:
    """Have ptxas assemble every module; print what it refuses, each kind once."""
    refused: dict[tuple[str, str], str] = {}
    for number in numbers:
        text = batch.load(folder, number).text
        lines = text.splitlines()
        for line, message in _assemble(text, folder):
            wrong = lines[line - 1]
            refused.setdefault((wrong.split()[0], re.sub(r"\d+", "", message)), f"{wrong}    {message}")
    print("\n".join(refused.values()) or f"{len(numbers) * batch.SIZE} programs pass")
    return len(refused)


def _recorded(folder: Path, numbers: range) -> Iterator[tuple[int, bytes]]:
    """The batches among ``numbers`` that a GPU ran, with their outputs."""
    for path in sorted(folder.glob("outputs*.npz")):
        with np.load(path) as recorded:
            for name in recorded.files:
                if (number := int(name.removeprefix("output"))) in numbers:
                    yield number, recorded[name].tobytes()


def compare(folder: Path, numbers: range, processes: int, most: int, keep: bool) -> int:
    """Run what was recorded on the emulated device; print the differences, and ``keep`` one of each mnemonic as a case."""
    jobs = [(folder, number, expected) for number, expected in _recorded(folder, numbers)]
    counts, whole = Counter[str](), 0
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=4) as pool:
        for compared in pool.imap_unordered(compare_batch, jobs):
            whole += compared.whole
            for label, text, case in compared.found:
                counts[label] += 1
                if counts[label] <= most:
                    print(f"--- batch {compared.number}: {text}", flush=True)
                if keep and case and counts[label] == 1:
                    case.write(cases.FOLDER / f"{re.sub(r'[^a-z0-9]+', '_', label)}.ptx")
    print(f"{len(jobs) * batch.SIZE} programs, {whole} of them with no step left out")
    print(f"differences: {dict(counts.most_common()) or 'none'}")
    return counts.total()


def keep(folder: Path, numbers: range, count: int) -> int:
    """Keep programs of each recorded batch for the tests."""
    for number, expected in _recorded(folder, numbers):
        made = batch.load(folder, number)
        batch.keep(made, expected, exact_programs(made, expected), count, RECORDED / f"h100_{number:03}.npz.xz")
    return 0


def _numbers(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("command", choices=("refused", "make", "check", "compare", "keep"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batches", type=_numbers, default=range(4), help=f"such as 0-199; {batch.SIZE} programs each")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="of made programs and recorded outputs")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--most", type=int, default=2, help="differences to print for each mnemonic")
    parser.add_argument("--cases", action="store_true", help="keep a case of each mnemonic that differs")
    parser.add_argument("--count", type=int, default=30, help="programs to keep of each batch")
    given = parser.parse_args()
    if given.command == "refused":
        return note_refused(given.folder)
    if given.command == "make":
        batch.save((batch.make(given.seed, number) for number in given.batches), given.folder)
        return 0
    if given.command == "check":
        return int(check(given.folder, given.batches) != 0)
    if given.command == "keep":
        return keep(given.folder, given.batches, given.count)
    return int(compare(given.folder, given.batches, given.processes, given.most, given.cases) != 0)


if __name__ == "__main__":
    sys.exit(main())
