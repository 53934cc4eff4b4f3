"""Measures what PTX needs, and writes the table: ``python -m tests.requirements [--ptxas PATH] write|check``."""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from kaasd.devices.emulator.ptx import requirement_table, requirements
from tests.requirements.declarations import DECLARATIONS, special_register_lines
from tests.requirements.fit import Words, fit
from tests.requirements.lines import all_lines
from tests.requirements.measure import Measurement
from tests.requirements.ptxas import TARGETS, VERSIONS, Ptxas

_FILE = Path(requirement_table.__file__)
_WIDTH = 130
_RENAMED = {"sm_101": "8.6", "sm_101a": "8.6", "sm_101f": "8.8"}
"""Targets that this ptxas has no more, with their first version as ptxas 13.0.88 has it."""

Row = tuple[int, int]
"""The places of a version and of a target; 0 where any will do."""


def measured(ptxas: Ptxas) -> dict[Words, Row]:
    """Return what each mnemonic, special register and directive needs."""
    measurement = Measurement(ptxas)
    words = all_lines() | special_register_lines()
    found: dict[Words, Row] = {}
    for line, (version, target) in measurement.lines(words).items():
        key = words[line]
        before = found.get(key, (version, target))
        found[key] = min(before[0], version), min(before[1], target)  # operands may be of more kinds than words tell
    found |= {(name,): measurement.declaration(text) for name, text in DECLARATIONS.items()}
    print(f"{len(found)} mnemonics and names", flush=True)
    return found | {(".target", target): (version, 0) for target, version in measurement.first_versions.items()}


def rules(found: Mapping[Words, Row]) -> dict[Words, Row]:
    """Return as few words as say the same."""
    by_name = defaultdict[str, dict[Words, Row]](dict)
    for words, row in found.items():
        by_name[words[0]][words] = row
    made: dict[Words, Row] = {}
    for needed in by_name.values():
        versions = fit({words: row[0] for words, row in needed.items()})
        targets = fit({words: row[1] for words, row in needed.items()})
        made |= {words: (versions.get(words, 0), targets.get(words, 0)) for words in {**versions, **targets}}
    return made


def text(ptxas_version: str, made: Mapping[Words, Row]) -> str:
    """Return the module with the table."""
    by_row = defaultdict[tuple[str, str], list[str]](list)
    for words, (version, target) in made.items():
        by_row[VERSIONS[version] if version else "-", TARGETS[target] if target else "-"].append(" ".join(words))
    for target, first in _RENAMED.items():
        by_row[first, "-"].append(f".target {target}")
    lines = [line for row in sorted(by_row, key=_order) for line in _wrapped(f"{row[0]:4}{row[1]:8}:", sorted(by_row[row]))]
    body = "\n".join(lines)
    return f'''"""What parts of PTX need, as ptxas {ptxas_version} has it.

Written by ``python -m tests.requirements write``; not edited by hand. A line has the first version and the first target, with a
minus where any will do, and what needs them: an opcode with modifiers of the mnemonic in their order, others between or not, but
none of those with a ``!``; a special register; or a directive. ``#4`` is an instruction of four operands, ``_`` one with a result
that is not wanted, ``pred`` one with a predicate in a number's place. The largest that applies counts. What needs no more than
PTX {VERSIONS[0]} and {TARGETS[0]}, the first with 64-bit addresses, is not listed.
"""

TABLE = """
{body}
"""
'''


def _order(row: tuple[str, str]) -> tuple[int, int]:
    return (VERSIONS.index(row[0]) if row[0] in VERSIONS else -1, TARGETS.index(row[1]) if row[1] in TARGETS else -1)


def _wrapped(head: str, names: list[str]) -> Iterator[str]:
    line = head
    for name in names:
        if len(line) + len(name) + 2 > _WIDTH:
            yield line.rstrip(",")
            line = head
        line += f" {name},"
    yield line.rstrip(",")


def check(ptxas: Ptxas, rounds: int = 20, seed: int = 2) -> int:
    """Compare the table with ptxas, for other mnemonics than it was made of, at versions and targets by chance."""
    rng = random.Random(seed)
    words = all_lines(seed) | special_register_lines()
    taken = list(Measurement(ptxas).lines(words))
    wrong = 0
    for _ in range(rounds):
        version, target = rng.choice(VERSIONS), rng.choice(TARGETS)
        if not ptxas.takes(["ret;"], version, target):
            continue
        major, _, minor = version.partition(".")
        declared = requirements.Declared((int(major), int(minor)), [target])
        accepted = ptxas.takes(taken, version, target)
        for line in taken:
            mine = not declared.lacks(requirements.of_words(words[line]))
            if mine != (line in accepted) and not (line.startswith(("shfl.", "vote.")) and ".sync" not in line):
                wrong += 1
                print(f".version {version} .target {target}: {line}  ptxas {'takes' if line in accepted else 'refuses'} it")
    print(f"{len(taken)} lines, {rounds} rounds: {wrong} differ")
    return wrong


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.requirements", description=__doc__)
    parser.add_argument("command", choices=("write", "check"))
    parser.add_argument("--ptxas", default="ptxas", help="of a CUDA that has the newest PTX the emulated device takes")
    given = parser.parse_args()
    ptxas = Ptxas(given.ptxas)
    if given.command == "check":
        return int(check(ptxas) != 0)
    found = measured(ptxas)
    _FILE.write_text(text(ptxas.version, rules(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
