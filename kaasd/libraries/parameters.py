"""What PTX says of the parameters of its entry points: their names and alignments, which no driver tells.

Pure. Any text is safe to give.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kaasd.libraries import ptx_text

_ENTRY = re.compile(r"\.entry\s+([\w$%]+)\s*\(([^()]*)\)")
_PARAMETER = re.compile(
    r"\s*\.param(?:\s*\.align\s+(\d+))?(?:\s*\.v([24]))?\s*\.[a-z]+(\d+)\b[^\[]*?([\w$%]+)\s*(?:\[[^\]]*\]\s*)*"
)


class Parameter(NamedTuple):
    """A parameter of an entry point."""

    name: str
    alignment_bytes: int
    """What its place is a multiple of."""


def parameters_of(texts: Iterable[str]) -> Mapping[str, tuple[Parameter, ...]]:
    """Return the parameters of every entry point of PTX texts, by its name. One whose declaration is not understood has none."""
    found: dict[str, tuple[Parameter, ...]] = {}
    for text in texts:
        for name, declared in _ENTRY.findall(ptx_text.code_of(text)[0]):
            parts = ptx_text.split(declared) if declared.strip() else []
            matches = [match for part in parts if (match := _PARAMETER.fullmatch(part)) is not None]
            if len(matches) == len(parts):
                found[name] = tuple(
                    Parameter(each[4], int(each[1] or 0) or int(each[3]) // 8 * int(each[2] or 1)) for each in matches
                )
    return found
