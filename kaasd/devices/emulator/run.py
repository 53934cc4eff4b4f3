"""Runs and copies of the emulated device, which have ended when they have begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter_ns
from typing import Any

from kaasd.devices.base import Launch, Transfer, buffer_names
from kaasd.devices.emulator.launch import Prepared
from kaasd.devices.emulator.memory import Allocation
from kaasd.devices.trace import SpanKind, Stream, Tracer

KERNELS = Stream("kernels")
"""Where all runs are, one after the other."""


class Ended:
    """A transfer that is over."""

    def done(self) -> bool:
        """Return True."""
        return True

    def wait(self) -> None:
        """Return at once."""


class EmulatedDownload(Ended):
    """A buffer's own memory."""

    def __init__(self, buffer: Allocation) -> None:
        self.view = memoryview(bytes(buffer.view))
        """A copy: the buffer may be used again."""

    def close(self) -> None:
        """Do nothing: the copy goes with the last who uses it."""


class EmulatedRun(Ended):
    """Launches to run; see ``Run``. What is uploaded is written into the buffers themselves."""

    def __init__(
        self,
        execute: Callable[[Prepared, int, Tracer[Any] | None], str],
        prepared: Prepared,
        iterations: int,
        uploads: Sequence[Allocation],
        zeroed: Sequence[Allocation],
        downloads: Sequence[Allocation],
    ) -> None:
        """``execute`` runs what was prepared, repeated, and returns what was printed."""
        self._execute = execute
        self._prepared = prepared
        self._iterations = iterations
        self._zeroed = zeroed
        self._downloads = downloads
        # Memory of their own, as on a GPU: a buffer that is loaded and written must start anew at each run.
        self._uploaded = uploads
        self.uploads = [memoryview(bytearray(buffer.size_bytes)) for buffer in uploads]
        self.printed = ""
        self.downloads = [buffer.view.toreadonly() for buffer in downloads]

    def update(self, launches: Sequence[Launch]) -> None:
        """Run these launches from now on."""
        self._prepared.place(launches)

    def warm(self) -> None:
        """Do nothing: the code is compiled."""

    def start(self, after: Iterable[Transfer] = (), tracer: Tracer[Any] | None = None) -> None:
        """Run to the end. Raises ``KernelFault``, ``Stopped``."""
        if tracer is not None:
            self._run_traced(tracer)
            return
        for buffer, content in zip(self._uploaded, self.uploads, strict=True):
            buffer.write(content)
        for buffer in self._zeroed:
            buffer.zero()
        self.printed = self._execute(self._prepared, self._iterations, None)

    def _run_traced(self, tracer: Tracer[Any]) -> None:
        """As ``start``. The host launches nothing aside, so that the stage ``launch`` is over when the first thing begins."""
        begun_ns = perf_counter_ns()
        names = buffer_names(self._prepared.launches)
        tracer.stage("launch", begun_ns)
        with tracer.working(KERNELS):
            for buffer, content in zip(self._uploaded, self.uploads, strict=True):
                with tracer.span(SpanKind.COPY_TO_DEVICE, KERNELS, name=names[buffer], size_bytes=buffer.size_bytes):
                    buffer.write(content)
            for buffer in self._zeroed:
                with tracer.span(SpanKind.ZERO, KERNELS, name=names[buffer], size_bytes=buffer.size_bytes):
                    buffer.zero()
            self.printed = self._execute(self._prepared, self._iterations, tracer)

    def close(self) -> None:
        """Let go of the buffers. Idempotent."""
        for view in self.downloads:
            view.release()
