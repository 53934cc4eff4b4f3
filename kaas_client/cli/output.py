"""The one printer of results: tables for people, JSON for programs.

The names of fields end in their units (``size_bytes``, ``run_ns``); tables print these as ``1.5 MiB`` and ``2.3 ms``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


class Printer:
    """Prints results to standard output."""

    def __init__(self, format: Format) -> None:
        self._format = format

    def value(self, name: str, value: str) -> None:
        """Print a single text: alone, or as the field ``name``."""
        print(printable(value)) if self._format is Format.TABLE else _print_json({name: value})

    def record(self, record: Any) -> None:
        """Print one dataclass, or a mapping of field names. In a table lists of records follow it as tables of their own."""
        if self._format is Format.JSON:
            _print_json(record)
            return
        fields = _fields(record)
        tables = [value for value in fields.values() if _is_records(value)]
        _print_table(None, list(_lines({name: value for name, value in fields.items() if not _is_records(value)})))
        for rows in tables:
            print()
            self.rows(rows, list(_fields(rows[0])))

    def rows(self, records: Iterable[Any], columns: Sequence[str]) -> None:
        """Print many dataclasses or mappings: in a table the ``columns`` of each, in JSON all of their fields."""
        if self._format is Format.JSON:
            _print_json(list(records))
            return
        cells = [[_cell(column, fields[column]) for column in columns] for fields in map(_fields, records)]
        _print_table([_heading(column).upper() for column in columns], cells)

    def stored(self, records: Iterable[Any], columns: Sequence[str]) -> None:
        """Print what is stored, as ``rows``. What is ``damaged`` has only its first column, and a table that has it says so."""
        known = (columns[0], "damaged")
        listed = [
            {name: value if name in known or not fields["damaged"] else None for name, value in fields.items()}
            for fields in map(_fields, records)
        ]
        self.rows(listed, [*columns, "damaged"] if any(fields["damaged"] for fields in listed) else columns)


def printable(text: str) -> str:
    """Return ``text`` with escapes for what could control a terminal: keys may contain any character."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def format_size(size_bytes: int) -> str:
    """Return a size for people to read."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1023.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def format_duration(duration_ns: int) -> str:
    """Return a duration for people to read."""
    if duration_ns < 1_000:
        return f"{duration_ns} ns"
    if duration_ns < 1_000_000:
        return f"{duration_ns / 1e3:.1f} µs"
    if duration_ns < 1_000_000_000:
        return f"{duration_ns / 1e6:.1f} ms"
    seconds = duration_ns // 1_000_000_000
    if seconds < 60:
        return f"{duration_ns / 1e9:.1f} s"
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"


def _fields(record: Any) -> Mapping[str, Any]:
    if isinstance(record, Mapping):
        return record
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_records(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and _is_record(value[0])


def _lines(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the lines of a record and of those nested in it. A field's name tells its unit; a mapping's key is data."""
    for name, value in fields.items():
        is_only = not name.endswith("_bytes") or name.removesuffix("_bytes") not in fields
        heading = f"{prefix}{_heading(name) if is_only else name.replace('_', ' ')}"
        if _is_record(value):
            yield from _lines(_fields(value), f"{heading} ")
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if _is_record(item):
                    yield from _lines(_fields(item), f"{heading} {printable(key)} ")
                else:
                    yield f"{heading} {printable(key)}", _cell("", item)
        else:
            yield heading, _cell(name, value)


def _heading(name: str) -> str:
    return name.removesuffix("_bytes").removesuffix("_ns").replace("_", " ")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith("_bytes"):
        return format_size(value)
    if isinstance(value, int) and name.endswith("_ns"):
        return format_duration(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell("", item) for item in value) or "-"
    return printable(str(value))


def _print_json(value: object) -> None:
    def convert(other: Any) -> object:
        return other.isoformat() if isinstance(other, datetime) else dataclasses.asdict(other)

    print(json.dumps(value, indent=2, ensure_ascii=False, default=convert))


def _print_table(headings: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=headings is not None, pad_edge=False, header_style="bold")
    for heading in headings or ("", ""):
        # Cells that are too long for a terminal are folded: half a key or id is of no use.
        table.add_column(heading, overflow="fold", no_wrap=not sys.stdout.isatty())
    for row in rows:
        table.add_row(*map(Text, row))
    # Lines written to a pipe are never folded.
    console = Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 1_000_000)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip())
