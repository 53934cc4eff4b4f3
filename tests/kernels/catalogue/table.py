"""The table in ``docs/compilers.md``, made of the catalogue: ``python -m tests.kernels.catalogue.table write|check``."""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import version
from pathlib import Path

from tests.kernels.catalogue import COMPILERS, LACKS, Entry, Shows, entries

PAGE = Path(__file__).parents[3] / "docs/compilers.md"
BEGIN, END = "<!-- tests/kernels/catalogue/table.py writes from here -->\n", "<!-- to here -->\n"
_VERSION = re.compile(r"\d+\.[\d.]+")


def table() -> str:
    """Return the table. Each ✓ is a case, which a test runs on the emulated device."""
    lines = [
        f"| compiler | version | PTX with no GPU | {' | '.join(each.value for each in Shows)} | kernels, all right |",
        f"|---|---|---|{'---|' * len(Shows)}---|",
    ]
    for compiler, (name, package) in COMPILERS.items():
        found = list(entries(compiler))
        cells = (_cell(compiler, each, found) for each in Shows)
        number = version(package) if package else "-"
        lines.append(f"| {name} | {number} | {'✓' if package else '-'} | {' | '.join(cells)} | {len(found)} |")
    return "\n".join(lines) + "\n"


def _cell(compiler: str, what: Shows, found: list[Entry]) -> str:
    if any(what in entry.shows for entry in found):
        return "✓"
    return "-" if what in LACKS.get(compiler, ()) else "not tried"


def written() -> str:
    """Return the table that the page has."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


def is_current() -> bool:
    """Whether the page has today's table, of whatever releases of the compilers."""
    return _VERSION.sub("", table()) == _VERSION.sub("", written())


def main() -> int:
    """Write the table, or say whether the page has it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["write", "check"])
    if parser.parse_args().what == "check":
        return 0 if is_current() else 1
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
