"""Put on the path of a process and of its children, has them note when they run code of which file, between SIGUSR1 and SIGUSR2.

Each writes the times of each file, by ``time.monotonic``, as JSON, into the directory that ``FILES_CROSSED_DIRECTORY`` names.
``benchmarks.files_crossed`` uses it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

_seen: dict[str, list[float]] = {}
_noting = False


def _note(frame: FrameType, event: str, argument: Any) -> None:
    if _noting:
        _seen.setdefault(frame.f_code.co_filename, []).append(monotonic())


def _begin(number: int, frame: FrameType | None) -> None:
    global _noting
    _seen.clear()
    _noting = True


def _end(number: int, frame: FrameType | None) -> None:
    global _noting
    _noting = False
    folder = Path(os.environ["FILES_CROSSED_DIRECTORY"])
    written = folder / f".{os.getpid()}"
    written.write_text(json.dumps(_seen))
    written.rename(folder / f"{os.getpid()}.json")


if "FILES_CROSSED_DIRECTORY" in os.environ:
    signal.signal(signal.SIGUSR1, _begin)
    signal.signal(signal.SIGUSR2, _end)
    threading.setprofile(_note)
    sys.setprofile(_note)
