"""What each process of the daemon sets up when it starts: its log, how the C library keeps memory, and what ends it."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import signal
import threading
from time import sleep

PR_SET_PDEATHSIG = 1
"""Of Linux's sys/prctl.h."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Of glibc's malloc.h."""
KEPT_S = 10.0


def keep_freed_memory() -> None:
    """Have large messages use the heap, and the heap keep what they free for up to ``KEPT_S``. Does nothing without glibc.

    Otherwise each message above 128 KiB is mapped, faulted in page by page and unmapped again: building and parsing one of 16 MiB
    went 5 to 9 times faster with these. The same is to be had from glibc's environment variables, but not after the start. What
    the heap never gives back adds up: messages of several threads come to lie ever differently.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for parameter, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 64 << 20)):
        libc.mallopt(parameter, value)

    def give_back() -> None:
        while True:
            sleep(KEPT_S)
            libc.malloc_trim(0)

    threading.Thread(target=give_back, name="freed memory", daemon=True).start()


def end_with_parent(parent: int) -> None:
    """Have this process killed when the thread that started it ends, however that does, or end it where ``parent`` has ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


class LogFormatter(logging.Formatter):
    """Writes what does not print as an escape, and marks all but the first line of a record.

    Keys, names and what kernels print come from callers: none of it can look like a record of its own, or control a terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        first, *others = super().format(record).split("\n")
        return "\n".join([_escaped(first), *(f"    {_escaped(line)}" for line in others)])


def start_log(level: str, device: str = "") -> None:
    """Log to standard error, from ``level`` on; a worker names its ``device``."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(" ".join(filter(None, ["%(asctime)s %(levelname)s", device, "%(name)s: %(message)s"]))))
    logging.basicConfig(level=level, handlers=[handler])


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in line)
