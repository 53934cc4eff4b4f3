"""What values of settings look like: sizes, times, numbers, text. Parsers take what a file, a variable or a flag gives, and raise
``ValueError``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

_SIZE_UNITS = {
    "": 1, "B": 1,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
_TIME_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_size(value: object) -> int:
    """Return a size in bytes, at least 1 and less than 2^63: a number, or text such as ``64GiB``. Raises ``ValueError``."""
    size = int(_parse_quantity(value, _SIZE_UNITS, "a size such as 16MiB"))
    if size < 1:
        raise ValueError("must be at least 1 byte")
    if size >= 1 << 63:
        raise ValueError("must be less than 8388608TiB")
    return size


def parse_duration(value: object) -> float:
    """Return a time in seconds, above 0: a number, or text such as ``500ms``, ``30s`` or ``10min``. Raises ``ValueError``."""
    seconds = _parse_quantity(value, _TIME_UNITS, "a time such as 30s")
    if seconds <= 0:
        raise ValueError("must be above 0")
    return seconds


def parse_busy_poll(value: object) -> float:
    return 0.0 if value in (0, "0") else parse_duration(value)


def _parse_quantity(value: object, units: Mapping[str, float], example: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value, re.ASCII) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise ValueError(f"expected {example}, got {value!r}")
    number = float(match[1]) if "." in match[1] else int(match[1])
    return number * units[match[2]]


def size_from(least: int, most: int) -> Callable[[object], int]:
    """Return a parser of sizes from ``least`` to ``most`` bytes."""

    def parse(value: object) -> int:
        size = parse_size(value)
        if size < least:
            raise ValueError(f"must be at least {least} bytes")
        if size > most:
            raise ValueError(f"must be at most {most} bytes")
        return size

    return parse


def whole_from(least: int, most: int) -> Callable[[object], int]:
    """Return a parser of whole numbers from ``least`` to ``most``."""

    def parse(value: object) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"expected a whole number of at least {least}, got {value!r}")
        if value > most:
            raise ValueError(f"must be at most {most}")
        return value

    return parse


parse_count, parse_seed = whole_from(1, 2**31 - 1), whole_from(0, 2**64 - 1)


def parse_switch(value: object) -> bool:
    if value not in (True, False, "true", "false"):
        raise ValueError(f"expected true or false, got {value!r}")
    return value in (True, "true")


def parse_version(value: object, what: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,2})\.(\d)", str(value), re.ASCII)
    if match is None:
        raise ValueError(f"expected {what} such as 9.0, got {value!r}")
    return int(match[1]), int(match[2])


def parse_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected text, got {value!r}")
    return value


def parse_path(value: object) -> Path:
    path = Path(parse_text(value)).expanduser()
    if not path.is_absolute():
        raise ValueError(f"expected an absolute path, got {value!r}")
    return path


def one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"expected {' or '.join(choices)}, got {value!r}")
        return str(value)

    return parse
