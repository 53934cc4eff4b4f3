"""What an executor has on its device, written where it outlives the process: so the next one knows what cost it the device.

A page of a file, mapped, holds the tasks that are on the device, and why the process is about to end, if it knows. When another
process opens it, what is in it was there when the first one died. Used by one thread, ``losses`` by any.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

_PAGE = 4096
_NOTE_BYTES = 1024
_TASK_BYTES = 64
"""Of a task's id, in hexadecimal and padded."""
MOST_TASKS = (_PAGE - _NOTE_BYTES) // _TASK_BYTES
"""That can be written down at a time."""
MOST_REMEMBERED = 1000
"""Tasks whose losses are known, the last ones."""
UNKNOWN_REASON = "the process ended without a word"


class Journal:
    """The journal of one executor, over all its processes."""

    def __init__(self, path: Path) -> None:
        """Read what the process before this one left, and begin anew."""
        self._history_path = path.with_suffix(".json")
        self._history: dict[str, list[str]] = json.loads(self._history_path.read_text()) if self._history_path.exists() else {}
        if path.exists():
            self._read(path.read_bytes())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(_PAGE))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _PAGE)
        self._free = [_NOTE_BYTES + index * _TASK_BYTES for index in range(MOST_TASKS)]
        self._places: dict[str, int] = {}

    def begin(self, task_id: str) -> None:
        """A task comes to the device."""
        place = self._places[task_id] = self._free.pop()
        self._page[place : place + _TASK_BYTES] = task_id.encode().ljust(_TASK_BYTES, b"\0")

    def end(self, task_id: str) -> None:
        """A task has left the device, which is still there. Idempotent."""
        place = self._places.pop(task_id, None)
        if place is None:
            return
        self._page[place : place + _TASK_BYTES] = bytes(_TASK_BYTES)
        self._free.append(place)
        if self._history.pop(task_id, None) is not None:
            self._save()

    def note(self, reason: str) -> None:
        """This process is about to end."""
        self._page[:_NOTE_BYTES] = reason.encode()[:_NOTE_BYTES].ljust(_NOTE_BYTES, b"\0")

    def losses(self, task_id: str) -> Sequence[str]:
        """Return when and how processes ended that had a task on their device."""
        return self._history.get(task_id, ())

    def _read(self, page: bytes) -> None:
        reason = page[:_NOTE_BYTES].rstrip(b"\0").decode(errors="replace") or UNKNOWN_REASON
        loss = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}: {reason}"
        for place in range(_NOTE_BYTES, len(page), _TASK_BYTES):
            if task_id := page[place : place + _TASK_BYTES].rstrip(b"\0").decode():
                self._history[task_id] = [*self._history.pop(task_id, []), loss]
        self._history = dict(list(self._history.items())[-MOST_REMEMBERED:])
        self._save()

    def _save(self) -> None:
        new = self._history_path.with_suffix(".new")
        new.write_text(json.dumps(self._history))
        os.replace(new, self._history_path)  # noqa: PTH105  (the same)
