"""Notices from another thread that the driver does not answer what it always answers at once, as after some faults.

After a trap an H200's driver keeps whoever asks whether a stream has ended for 0.3 s with 8 hardware queues and for 3 s with 32.
Otherwise it answers within microseconds. What may enter the kernel is no such question: an allocation took 0.1 s while another
process made its context. (Driver 580.159. After an illegal address it goes on saying "not ready" for 0.12 s.)
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep

LOOK_S = 0.015
"""Between two looks."""
MOST_LOOKS = 4
"""At a question that was open the time before, those aside between which the asking thread had no processor."""
STARVED = 0.5
"""Part of the time between two looks: who waits longer for a processor has none."""


class Questions:
    """Whether a question is open, as the thread that asks the driver says, and the thread that looks at it.

    ``with questions:`` stands around what the driver answers at once.
    """

    def __init__(self) -> None:
        self.number = 0
        """Of the question: one more when it begins and when it has its answer, so it is odd while it is open."""
        self._wanted = threading.Event()

    def __enter__(self) -> None:
        self.number += 1

    def __exit__(self, *_: object) -> None:
        self.number += 1

    def watch(self, on_silence: Callable[[], object]) -> None:
        """Have ``on_silence`` called, once, by another thread, when a question of the calling one has been open for too long."""
        asks = threading.get_native_id()
        threading.Thread(target=self._look, args=(on_silence, asks), name="silence", daemon=True).start()

    def expect(self) -> None:
        """Questions may come: a run begins."""
        if not self._wanted.is_set():
            self._wanted.set()

    def rest(self) -> None:
        """No run is under way."""
        self._wanted.clear()

    def _look(self, on_silence: Callable[[], object], thread: int) -> None:
        seen, looks, before_s = 0, 0, math.inf
        while looks < MOST_LOOKS:
            self._wanted.wait()
            sleep(LOOK_S)
            number = self.number
            if number != seen or number % 2 == 0:
                seen, looks, before_s = number, 0, math.inf
                continue
            now_s = waited_s(thread)
            if before_s < math.inf and now_s - before_s < STARVED * LOOK_S:
                looks += 1
            before_s = now_s
        on_silence()


def waited_s(thread: int) -> float:
    """Return for how long a thread of this process has waited for a processor; 0 where the kernel does not tell."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
