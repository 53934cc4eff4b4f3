"""Copies of the working tree, in each of which one thing at a time is changed and tested."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.mutation import plugin

ROOT = Path(__file__).parents[2]
MARKS = "not gpu and not slow"
_MADE = ("build", "dist", "node_modules", "__pycache__")
"""Folders that git ignores, beside those whose name begins with a dot."""


class OutOfTime(Exception):
    """The deadline has passed: what was under way is lost, what had ended is kept."""


class Tree:
    """A copy of the working tree in which code can be changed. Uncommitted files are in it, ignored ones are not."""

    def __init__(self, path: Path, deadline: float) -> None:
        self.path = path
        self._deadline = deadline
        """On the monotonic clock, in seconds."""

    @classmethod
    def copies(cls, folder: Path, count: int, names: Iterable[str], deadline: float) -> list[Tree]:
        """Make copies of these files, all of them alike although somebody may be editing the files."""
        path = folder / "0"
        for name in names:
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
        # By their hash, not by their time, does Python know that sources have changed: two changes may fall into one second.
        packages = ["kaasd", "kaas_core", "kaas_client", "proto", "examples"]
        compile_all = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", *packages]
        subprocess.run(compile_all, cwd=path, check=True)
        paths = [path, *(shutil.copytree(path, folder / str(number)) for number in range(1, count))]
        return [cls(path, deadline) for path in paths]

    def pytest(self, arguments: Sequence[str], environ: dict[str, str], limit_s: float) -> tuple[int | None, str]:
        """Run pytest here. Return its exit status, None past ``limit_s``, and its output. Raises ``OutOfTime``."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", plugin.__name__, "-m", MARKS]
        own = [str(self.path / name) for name in (".", "proto", "tests/mutation/start")]
        here = {
            "PYTHONPATH": os.pathsep.join(own + os.environ.get("PYTHONPATH", "").split(os.pathsep)).rstrip(os.pathsep),
            "CUDA_VISIBLE_DEVICES": "",  # The default device is the emulated one, whatever this machine has.
        }
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise OutOfTime
        output = self.path.with_suffix(".output")
        status = None
        with (
            output.open("w") as file,
            subprocess.Popen(
                [*command, f"--basetemp={self.path}.tmp", *arguments],
                cwd=self.path,
                env={**os.environ, **here, **environ},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                status = process.wait(min(limit_s, left_s))
            except subprocess.TimeoutExpired:
                if left_s < limit_s:
                    raise OutOfTime from None
            finally:
                with suppress(ProcessLookupError):  # What the tests have left running.
                    os.killpg(process.pid, signal.SIGKILL)
        return status, output.read_text(errors="replace")


def files_of_tree() -> list[str]:
    """Return the names of all files of the working tree but those that git ignores. It need not be a repository."""
    names = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            name for name in folders if name not in _MADE and not name.startswith(".") and not name.endswith(".egg-info")
        ]
        names += [str((Path(folder) / name).relative_to(ROOT)) for name in files]
    return sorted(name for name in names if (ROOT / name).is_file())
