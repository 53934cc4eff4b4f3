"""Local files as arguments: ``KEY=FILE``, ``-`` for the standard streams, and files that are written whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import typer

from kaas_client._files import whole_file

STANDARD_STREAM = "-"


@dataclass(frozen=True, slots=True)
class Assignment:
    """``KEY=FILE`` on a command line, or another pair."""

    name: str
    value: str


def parse_assignments(option: str, form: str, texts: Sequence[str]) -> list[Assignment]:
    """Return the values of a repeated option of the form ``KEY=FILE`` or another.

    What stands before the first ``=`` may be given only once.
    """
    found: dict[str, Assignment] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise typer.BadParameter(f"{text!r} is not of the form {form}", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        found[name] = Assignment(name, value)
    return list(found.values())


def check_readable(paths: Sequence[str]) -> None:
    """Refuse files that cannot be read, before anything is done. Standard input may be named once."""
    if list(paths).count(STANDARD_STREAM) > 1:
        raise typer.BadParameter("standard input can be read only once")
    for path in paths:
        if path != STANDARD_STREAM:
            with open_input(path):
                pass


def check_writable(paths: Sequence[str]) -> None:
    """Refuse files whose directory is missing, before anything is done. Standard output may be named once."""
    if list(paths).count(STANDARD_STREAM) > 1:
        raise typer.BadParameter("standard output can be written only once")
    for path in paths:
        if path == STANDARD_STREAM:
            continue
        target = Path(path)
        if target.is_dir():
            raise typer.BadParameter(f"{path} is a directory")
        if not target.parent.is_dir():
            raise typer.BadParameter(f"{path}: the directory {target.parent} does not exist")


@contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """Open a file, or standard input, to read. Raises ``typer.BadParameter`` where it cannot be opened."""
    if path == STANDARD_STREAM:
        yield sys.stdin.buffer
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115  # What the caller does with it may raise OSError too.
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from None
    with file:
        yield file


@contextmanager
def open_output(path: str, *, private: bool = False) -> Iterator[BinaryIO]:
    """Open a file, or standard output, to write. A file appears, or is replaced, only if nothing fails; see ``whole_file``."""
    if path == STANDARD_STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with whole_file(path, private=private) as file:
        yield file
