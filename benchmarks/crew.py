"""Processes that all do the same thing at the same time, and report in lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

HEAD_START_S = 0.05
"""From the order to the start: enough for the order to reach every process."""


class Crew:
    """``size`` processes of one module, which end at the end of its ``with`` block.

    The module reports once when it is ready, and then once for each of its ``orders()``.
    """

    def __init__(self, module: str, size: int, arguments: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> None:
        """Start the processes, ready or not."""
        command = [sys.executable, "-m", module, *arguments]
        environment = {**os.environ, **(environ or {})}
        self._members = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(size)
        ]
        self._module = module
        self._ready = False
        self.size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. Idempotent."""
        for member in self._members:
            assert member.stdin
            member.stdin.close()
        for member in self._members:
            try:
                member.wait(timeout=20)
            except subprocess.TimeoutExpired:
                member.kill()
                member.wait()
            assert member.stdout
            member.stdout.close()

    def wait_until_ready(self) -> None:
        """Return when all are ready. Raises ``RuntimeError``, and ends the others, where one ends before."""
        if self._ready:
            return
        try:
            for member in self._members:
                self._read(member)
        except BaseException:
            self.close()
            raise
        self._ready = True

    def run(self, orders: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Give an order to as many processes as there are orders, to be begun at the same time; return their reports."""
        self.wait_until_ready()
        start = time.monotonic() + HEAD_START_S
        busy = []
        for member, order in zip(self._members, orders, strict=False):
            assert member.stdin
            member.stdin.write(json.dumps({**order, "start": start}) + "\n")
            member.stdin.flush()
            busy.append(member)
        return [self._read(member) for member in busy]

    def _read(self, member: subprocess.Popen[str]) -> dict[str, Any]:
        assert member.stdout
        line = member.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended with exit code {member.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def report(**answer: Any) -> None:
    """Say that this process is ready, or what came of its last order."""
    print(json.dumps(answer), flush=True)


def orders() -> Iterable[dict[str, Any]]:
    """Yield the orders of the process that started this one, each at the time when it is to begin."""
    for line in sys.stdin:
        order = json.loads(line)
        time.sleep(max(0.0, order["start"] - time.monotonic()))
        yield order
