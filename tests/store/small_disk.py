"""Disks that are soon full, for processes of tests.

``limit`` is none: the store's own limit is what is reached. ``file-size`` is a limit on the size of files, which every user may
set. ``tmpfs`` is a file system in a mount namespace of its own, which some systems keep from plain users.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

_LIMIT_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execvp(sys.argv[2], sys.argv[2:])
"""
_MOUNT = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && shift 2 && exec "$@"'


class SmallDisk(NamedTuple):
    """A folder in which the process that ``command`` starts, and its children, find so much room and no more."""

    kind: str
    folder: Path
    size_bytes: int

    def command(self, *command: str) -> list[str]:
        """Return ``command`` with what makes the disk small in front of it. It keeps its process id."""
        if self.kind == "limit":
            return [*command]
        if self.kind == "file-size":
            return [sys.executable, "-c", _LIMIT_FILES, str(self.size_bytes), *command]
        return [*_unshare()[0], "sh", "-c", _MOUNT, "sh", str(self.size_bytes), str(self.folder), *command]

    def seen_from_here(self, pid: int) -> Path:
        """Return where this process finds the folder as the process ``pid`` sees it."""
        return Path(f"/proc/{pid}/root{self.folder}") if self.kind == "tmpfs" else self.folder

    def fill(self, pid: int) -> Callable[[], None]:
        """Have other files take all that is left, as far as the kind knows of others; return what removes them again."""
        if self.kind != "tmpfs":
            return lambda: None
        ballast = self.seen_from_here(pid) / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for step in (1 << 20, 4096):
                try:
                    while file.write(bytes(step)) == step:
                        pass
                except OSError:
                    continue
        return ballast.unlink


def make(kind: str, folder: Path, size_bytes: int) -> SmallDisk:
    """Return a small disk at ``folder``, which is made; skips the test where this machine allows none of this kind."""
    if kind == "tmpfs":
        way, problem = _unshare()
        if not way:
            pytest.skip(f"no tmpfs can be mounted in a namespace of one's own here: {problem}")
    folder.mkdir()
    return SmallDisk(kind, folder, size_bytes)


@cache
def _unshare() -> tuple[list[str], str]:
    """Return the command that gives a process mounts of its own, or why there is none. A plain user needs the first form."""
    problems = []
    for way in (["unshare", "-Urm"], ["unshare", "-m"]):
        if shutil.which(way[0]) is None:
            return [], "there is no unshare"
        test = subprocess.run(
            [*way, "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"], capture_output=True, text=True, check=False
        )
        if test.returncode == 0:
            return way, ""
        problems.append(f"{' '.join(way)}: {test.stderr.strip()}")
    return [], f"{'; '.join(problems)} (user {os.getuid()})"
