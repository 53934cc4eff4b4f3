"""Asks ptxas which of many lines of PTX it takes, for a version and a target."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

OLDEST = "75"
"""The oldest GPU that ptxas of CUDA 13 makes code for; PTX of an older target is compiled for it."""
VERSIONS = ("2.3", "3.0", "3.1", "3.2", "4.0", "4.1", "4.2", "4.3", "5.0", "6.0", "6.1", "6.2", "6.3", "6.4", "6.5",
            "7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "7.7", "7.8", "8.0", "8.1", "8.2", "8.3", "8.4", "8.5", "8.6",
            "8.7", "8.8", "9.0", "9.1", "9.2", "9.3", "9.4", "9.5")  # fmt: skip
"""From the first with 64-bit addresses, which the emulated device needs."""
TARGETS = ("sm_20", "sm_30", "sm_32", "sm_35", "sm_37", "sm_50", "sm_52", "sm_53", "sm_60", "sm_61", "sm_62", "sm_70", "sm_72",
           "sm_75", "sm_80", "sm_86", "sm_87", "sm_88", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100f", "sm_100a", "sm_103",
           "sm_103f", "sm_103a", "sm_107", "sm_107f", "sm_107a", "sm_110", "sm_110f", "sm_110a", "sm_120", "sm_120f", "sm_120a",
           "sm_121", "sm_121f", "sm_121a")  # fmt: skip
_KERNEL = 100
"""Lines in one kernel."""


class Ptxas:
    def __init__(self, program: str = "ptxas") -> None:
        self._program = program
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = re.search(r"V([\d.]+)", shown)[1]  # type: ignore[index]
        with tempfile.NamedTemporaryFile("w", suffix=".ptx", delete=False) as file:
            self._path = Path(file.name)

    def takes(self, lines: Collection[str], version: str, target: str) -> set[str]:
        """Return those of ``lines`` that are taken. Raises ``RuntimeError`` if ptxas fails in a way that says nothing of them."""
        left = list(lines)
        while left:
            places, text = _module(left, version, target)
            refused, is_whole = self.refused(text, target)
            wrong = {index for line in refused for index in places.get(line, ())}
            if refused - set(places):
                return set()  # the module, whatever is in it
            left = [line for index, line in enumerate(left) if index not in wrong]
            if is_whole:
                return set(left)
            if not wrong:
                raise RuntimeError(f"{self._program} ended early, and refused nothing: {self._path}")
        return set()

    def refused(self, text: str, target: str) -> tuple[set[int], bool]:
        """Return the numbers of the lines that ptxas refuses a module for, and whether it has read the whole."""
        self._path.write_text(text)
        command = [self._program, "-arch", _gpu(target), str(self._path), "-o", "/dev/null"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.findall(rf"{re.escape(str(self._path))}, line (\d+); (error|fatal) *:", result.stderr)
        is_whole = result.returncode == 0 or (result.returncode > 0 and not any(kind == "fatal" for _, kind in found))
        return {int(number) for number, _ in found}, is_whole


def _gpu(target: str) -> str:
    """The GPU to compile for, a virtual one: features are checked when PTX is read, so no code needs to be made."""
    name = target.removeprefix("sm_")
    return f"compute_{name if int(name.rstrip('af')) >= int(OLDEST) else OLDEST}"


def _module(lines: Sequence[str], version: str, target: str) -> tuple[dict[int, tuple[int, ...]], str]:
    """Return, for each line of the text, the lines it stands for: one, or all of a kernel; and the text."""
    text = [f".version {version}", f".target {target}", ".address_size 64", ".func nothing () { ret; }",
            ".func (.reg .b32 d) something (.reg .b32 a) { mov.b32 d, a; ret; }"]  # fmt: skip
    places: dict[int, tuple[int, ...]] = {}

    def add(line: str, stands_for: Iterable[int] = ()) -> None:
        text.append(line)
        places[len(text)] = tuple(stands_for)

    for wide in (False, True):
        some = [index for index, line in enumerate(lines) if ("%q" in line) is wide]
        for start in range(0, len(some), _KERNEL):
            chunk = some[start : start + _KERNEL]
            add(f".entry k{wide:d}{start} (.param .b64 kp)", chunk)
            add("{ .reg .pred %p<10>; .reg .b16 %h<10>; .reg .b32 %r<10>; .reg .b64 %d<10>;", chunk)
            if wide:
                add(".reg .b128 %q<10>;", chunk)
            for index in chunk:
                add(lines[index], (index,))
            add("E: ret; }", chunk)
    return places, "\n".join(text) + "\n"
