"""Other processes on a store, and a writer that is held up."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kaas_core.errors import KeyNotFoundError
from kaasd.store.lmdb_store import LmdbStore

Start = Callable[..., "subprocess.Popen[str]"]


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line that ``process`` says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the process ended with {process.wait()}"
    return line.strip()


def tell(process: subprocess.Popen[str], words: str = "go") -> None:
    assert process.stdin is not None
    process.stdin.write(words + "\n")
    process.stdin.flush()


def own(store: Path, start: Start) -> subprocess.Popen[str]:
    """Return another process, which says that it has a store open."""
    child = start(
        f"""
import fcntl, os
file = os.open({str(store / "owners")!r}, os.O_WRONLY)
fcntl.lockf(file, fcntl.LOCK_EX, 1, 4711)
say("locked")
sys.stdin.read()
""",
        bare="yes",
    )
    assert said(child) == "locked"
    return child


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@contextmanager
def writer_held_up(store: LmdbStore) -> Iterator[None]:
    """LMDB's write lock is taken meanwhile, so that what is asked of the writer has to wait."""
    store.sweep().result()
    txn = store._environment.begin(write=True)
    try:
        blocked = store.delete("a key that is not there")
        wait_until(blocked.running)
        yield
    finally:
        store._environment.end(txn)
    assert isinstance(blocked.exception(), KeyNotFoundError)


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():  # the test's own time limit ends it
        time.sleep(0.001)
