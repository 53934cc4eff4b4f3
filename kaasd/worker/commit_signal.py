"""What wakes a worker's loop."""

from __future__ import annotations

import os


class CommitSignal:
    """Wakes the loop when a commit has ended, or a compilation; ``notify`` may be called from any thread."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._descriptor

    def notify(self) -> None:
        """One has ended."""
        os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """What was notified has been seen."""
        os.eventfd_read(self._descriptor)

    def close(self) -> None:
        """Free the descriptor."""
        os.close(self._descriptor)
