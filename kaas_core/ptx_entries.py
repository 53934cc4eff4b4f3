"""What PTX says of its entry points: parameters, block and cluster; and of itself: version and target.

Pure. Any text is safe to give.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kaas_core import ptx_text
from kaas_core.request import Dim3

_ENTRY = re.compile(r"\.entry\s+([\w$%]+)\s*(?:\(([^()]*)\))?([^{;()]*)")
_PARAMETER = re.compile(
    r"\s*\.param(?:\s*\.align\s+(\d+))?(?:\s*\.v([24]))?\s*\.[a-z]+(\d+)\b([^\[]*?)([\w$%]+)\s*((?:\[[^\]]*\]\s*)*)"
)
_DIRECTIVE = re.compile(r"\.(reqntid|maxntid|reqnctapercluster)\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")
_LENGTH = re.compile(r"\[\s*(\d+)\s*\]")
_VERSION = re.compile(r"^\s*\.version\s+(\d+)\.(\d+)", re.MULTILINE)
_TARGET = re.compile(r"^\s*\.target\s+(sm_\w+)", re.MULTILINE)


class Parameter(NamedTuple):
    """A parameter of an entry point."""

    name: str
    alignment_bytes: int
    """What its place is a multiple of."""
    size_bytes: int
    is_pointer: bool = False
    """It is declared as an address; others may be addresses all the same."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry point as it is declared."""

    parameters: tuple[Parameter, ...] | None
    """None where a declaration of one is not understood."""
    required_block: Dim3 | None = None
    """Threads of ``.reqntid``."""
    max_threads: int | None = None
    """Of ``.maxntid``, all dimensions together."""
    cluster: Dim3 | None = None
    """Blocks of ``.reqnctapercluster``."""


class Header(NamedTuple):
    """What stands at the head of a PTX text."""

    version: int
    """87 for 8.7; 0 where there is none."""
    target: str
    """Such as ``sm_90a``."""


def header_of(text: str) -> Header:
    """Return the version and the architecture of a PTX text."""
    version, target = _VERSION.search(text), _TARGET.search(text)
    return Header(10 * int(version[1]) + int(version[2]) if version else 0, target[1] if target else "")


def entries_of(texts: Iterable[str]) -> Mapping[str, Entry]:
    """Return every entry point of PTX texts, by its name."""
    found: dict[str, Entry] = {}
    for text in texts:
        for name, declared, directives in _ENTRY.findall(ptx_text.code_of(text)[0]):
            sizes = {each[0]: _dim3(each[1:]) for each in _DIRECTIVE.findall(directives)}
            most = sizes.get("maxntid")
            found[name] = Entry(
                _parameters(declared),
                sizes.get("reqntid"),
                None if most is None else most[0] * most[1] * most[2],
                sizes.get("reqnctapercluster"),
            )
    return found


def _parameters(declared: str) -> tuple[Parameter, ...] | None:
    parts = ptx_text.split(declared) if declared.strip() else []
    matches = [_PARAMETER.fullmatch(part) for part in parts]
    found = tuple(_parameter(match) for match in matches if match is not None)
    return found if len(found) == len(parts) else None


def _parameter(match: re.Match[str]) -> Parameter:
    alignment, vector, bits, attributes, name, lengths = match.groups(default="")
    own = int(bits) // 8 * int(vector or 1)
    size = own
    for length in _LENGTH.findall(lengths):
        size *= int(length)
    return Parameter(name, int(alignment or 0) or own, size, ".ptr" in attributes)


def _dim3(numbers: Iterable[str]) -> Dim3:
    x, y, z = (int(number or 1) for number in numbers)
    return x, y, z
