"""Progress of long transfers: on standard error, and only where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

LONG_BYTES = 16 << 20
"""Shorter transfers are over before a bar could be read."""


@contextmanager
def transfer(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function for a client's ``progress``, or None where standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as stack:
        yield _Bar(label, stack)


class _Bar:
    """A bar that appears at the first call, if the transfer is long."""

    def __init__(self, label: str, stack: ExitStack) -> None:
        self._label = label
        self._stack = stack
        self._task: TaskID | None = None

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        if total_bytes < LONG_BYTES:
            return
        if self._task is None:
            from rich.console import Console
            from rich.markup import escape
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

            self._progress = self._stack.enter_context(
                Progress(
                    TextColumn(escape(self._label)),
                    BarColumn(),
                    DownloadColumn(binary_units=True),
                    TransferSpeedColumn(),
                    TimeRemainingColumn(),
                    console=Console(stderr=True),
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
            )
            self._task = self._progress.add_task("", total=total_bytes)
        self._progress.update(self._task, completed=done_bytes)
