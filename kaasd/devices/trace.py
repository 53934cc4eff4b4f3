"""What a device notes of one request, where it is asked to: when each copy, zeroing and launch was."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from time import perf_counter_ns
from typing import Any, Generic, TypeVar

MAX_LAUNCHES = 10_000
"""Of a request that get a span each. In a reply they take 250 kB, and on a GPU two events each."""


class SpanKind(Enum):
    """What a span shows."""

    STAGE = "stage"
    KERNEL = "kernel"
    COPY_TO_DEVICE = "copy_to_device"
    ZERO = "zero"
    COPY_TO_HOST = "copy_to_host"


@dataclass(frozen=True, slots=True)
class TracedSpan:
    """Something that took time. Times in nanoseconds, of ``time.perf_counter_ns``."""

    kind: SpanKind
    start_ns: int
    end_ns: int
    name: str = ""
    """Of a stage, or of a buffer."""
    stream: str = ""
    """Where it ran; empty for a stage."""
    kernel_index: int = 0
    """Of a launch."""
    iteration: int = 0
    """Of a launch."""
    size_bytes: int = 0
    """Of a copy or a zeroing."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Where one thing runs after another."""

    name: str
    handle: Any = None
    """What the device knows it by."""


Mark = TypeVar("Mark")


@dataclass(slots=True)
class _Open(Generic[Mark]):
    """A span whose times are not known yet."""

    kind: SpanKind
    begin: Mark
    end: Mark
    fields: dict[str, Any] = field(default_factory=dict)


class Tracer(ABC, Generic[Mark]):
    """Takes note of what one request does on a device. A mark is a point of time on a stream, and may still have to come."""

    def __init__(self, copies_in: Stream, copies_out: Stream) -> None:
        """``copies_in`` is the stream of ``Device.upload``, ``copies_out`` that of ``Device.download``."""
        self.notes: list[str] = []
        """What a person should know who reads the trace."""
        self.launches_left_out = 0
        """Launches beyond ``MAX_LAUNCHES``."""
        self._copies_in = copies_in
        self._copies_out = copies_out
        self._launches = 0
        self._open: list[_Open[Mark]] = []
        self.stages: list[TracedSpan] = []
        """Those of the host."""

    @abstractmethod
    def mark(self, stream: Stream) -> Mark:
        """Return the point to which a stream has come when all that is in it now has ended."""

    @abstractmethod
    def times_ns(self, marks: Iterable[Mark]) -> list[int]:
        """Return when streams came to some marks, all of which are past."""

    @abstractmethod
    def close(self) -> None:
        """Free what it took. Idempotent."""

    @contextmanager
    def span(self, kind: SpanKind, stream: Stream, **fields: Any) -> Iterator[None]:
        """Note what is put into a stream meanwhile; ``fields`` are further ones of ``TracedSpan``."""
        begin = self.mark(stream)
        yield
        self._open.append(_Open(kind, begin, self.mark(stream), {"stream": stream.name, **fields}))

    def upload(self, name: str, size_bytes: int) -> AbstractContextManager[None]:
        """Note a ``Device.upload`` that begins meanwhile."""
        return self.span(SpanKind.COPY_TO_DEVICE, self._copies_in, name=name, size_bytes=size_bytes)

    def download(self, name: str, size_bytes: int) -> AbstractContextManager[None]:
        """Note a ``Device.download`` that begins meanwhile."""
        return self.span(SpanKind.COPY_TO_HOST, self._copies_out, name=name, size_bytes=size_bytes)

    def launch(self, stream: Stream, kernel_index: int, iteration: int) -> AbstractContextManager[None]:
        """Note a launch that is put into a stream meanwhile, if it is one of the first ``MAX_LAUNCHES``."""
        if self._launches == MAX_LAUNCHES:
            self.launches_left_out += 1
            return nullcontext()
        self._launches += 1
        return self.span(SpanKind.KERNEL, stream, kernel_index=kernel_index, iteration=iteration)

    @contextmanager
    def working(self, stream: Stream) -> Iterator[None]:
        """Note the stage ``gpu``: from the first to the last of what is put into a stream meanwhile."""
        begin = self.mark(stream)
        yield
        self._open.append(_Open(SpanKind.STAGE, begin, self.mark(stream), {"name": "gpu"}))

    def stage(self, name: str, start_ns: int, end_ns: int | None = None) -> None:
        """Note a stage on the host, which ends now by default."""
        self.stages.append(TracedSpan(SpanKind.STAGE, start_ns, perf_counter_ns() if end_ns is None else end_ns, name))

    def spans(self) -> list[TracedSpan]:
        """Return all spans. What was noted must have ended on the device."""
        begins = self.times_ns(each.begin for each in self._open)
        ends = self.times_ns(each.end for each in self._open)
        noted = [
            TracedSpan(each.kind, begin, end, **each.fields) for each, begin, end in zip(self._open, begins, ends, strict=True)
        ]
        return [*self.stages, *noted]


class HostTracer(Tracer[int]):
    """For a device on the CPU, where what begins has ended when the call returns."""

    def __init__(self) -> None:
        super().__init__(Stream("copies in"), Stream("copies out"))

    def mark(self, stream: Stream) -> int:
        """Return the time."""
        return perf_counter_ns()

    def times_ns(self, marks: Iterable[int]) -> list[int]:
        """Return the marks."""
        return list(marks)

    def close(self) -> None:
        """Do nothing."""
