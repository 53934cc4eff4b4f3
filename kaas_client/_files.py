"""Files that a client writes whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from kaas_client._transfer import Writable


@contextmanager
def whole_file(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[BinaryIO]:
    """Open a file to write, that appears or takes the place of another only at the end of the ``with`` block, if nothing fails.

    A ``private`` one is for its owner alone, unless it replaces one that is not, and is on the disk when it appears. What is no
    plain file, such as a pipe, is written directly. Raises ``OSError``.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    part = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
    mode = 0o600 if private else 0o666
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            if private:
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            part.unlink()
        raise


@contextmanager
def open_target(into: str | os.PathLike[str] | Writable) -> Iterator[Writable]:
    """Open a path to write a private file to, whole or not at all; a binary file is taken as it is. Raises ``OSError``."""
    if isinstance(into, str | os.PathLike):
        with whole_file(into, private=True) as file:
            yield file
    else:
        yield into
