"""A traced run on a GPU, whose driver is replaced: every operation takes a millisecond, and an event tells when it came."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from time import perf_counter_ns
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cuda.bindings import driver

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, DeviceLost, Launch
from kaasd.devices.cuda.buffers import CudaBuffer
from kaasd.devices.cuda.context import CudaContext, LaneKind
from kaasd.devices.cuda.kernel import CudaKernel, LoadedCode
from kaasd.devices.cuda.moves import Moved
from kaasd.devices.cuda.run import CudaRun
from kaasd.devices.cuda.silence import Questions
from kaasd.devices.cuda.tracer import CudaTracer
from kaasd.devices.trace import SpanKind, TracedSpan
from kaasd.request.device_checks import KernelAttributes

CODE = LoadedCode("library", "module")
SUCCESS = driver.CUresult.CUDA_SUCCESS
COPIES_IN, COPIES_OUT, KERNELS, IDLE = 5, 6, 7, 8
MILLISECOND = 1_000_000
MOVER = CudaKernel(99, KernelAttributes("moveKern", (768, 8, 8), 0, 1024), CODE)


class FakeDriver:
    """Streams by number, and one clock that each of their operations moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = 0.0
        self.events: dict[int, float | None] = {}
        self.launched: list[int] = []
        self.waits: list[tuple[int, float]] = []
        self.fault = False
        names = ["cuStreamGetId", "cuStreamWaitEvent", "cuStreamSynchronize", "cuLaunchKernel"]
        names += ["cuEventCreate", "cuEventDestroy", "cuEventRecord", "cuEventSynchronize", "cuEventElapsedTime"]
        for name in names:
            monkeypatch.setattr(driver, name, getattr(self, name))

    def cuStreamGetId(self, stream: int) -> tuple[Any, ...]:
        return SUCCESS, stream + 100

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        came_at_ms = self.events[event]
        assert came_at_ms is not None
        self.waits.append((stream, came_at_ms))
        return (SUCCESS,)

    def cuStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        return (SUCCESS,)

    def cuLaunchKernel(self, function: int, *arguments: Any) -> tuple[Any, ...]:
        self.launched.append(function)
        self.now_ms += 1
        return (SUCCESS,)

    def cuEventCreate(self, flags: Any) -> tuple[Any, ...]:
        assert flags == driver.CUevent_flags.CU_EVENT_DEFAULT  # with its times
        event = len(self.events)
        self.events[event] = None
        return SUCCESS, event

    def cuEventDestroy(self, event: int) -> tuple[Any, ...]:
        del self.events[event]
        return (SUCCESS,)

    def cuEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        self.events[event] = self.now_ms
        return (SUCCESS,)

    def cuEventSynchronize(self, event: int) -> tuple[Any, ...]:
        return (driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS if self.fault else SUCCESS,)

    def cuEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:
        begun, ended = self.events[start], self.events[end]
        assert begun is not None and ended is not None
        return SUCCESS, ended - begun


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return FakeDriver(monkeypatch)


@pytest.fixture
def context() -> Any:
    """A context whose check is the real one."""
    made = cast(Any, CudaContext.__new__(CudaContext))
    made.copies_in, made.copies_out = COPIES_IN, COPIES_OUT
    made.runs_under_way, made._suspects, made.fault, made.questions = 0, 0, None, Questions()
    made.take_lane = lambda kind: SimpleNamespace(stream=KERNELS, reset=lambda: None, mark=lambda count: None, progress=0)
    made.lane_kind = lambda priority=0, group="": LaneKind()
    made.give_lane = lambda lane: None
    made.pinned = SimpleNamespace(take=pinned)
    return made


def pinned(size_bytes: int) -> Any:
    memory = (ctypes.c_char * size_bytes)()
    return SimpleNamespace(view=memoryview(memory), address=ctypes.addressof(memory), close=lambda: None, memory=memory)


def buffer(size_bytes: int) -> CudaBuffer:
    return CudaBuffer(0x10000 * size_bytes, size_bytes, IDLE, cast(Any, None), lambda _: None)


A, P, C = (buffer(size) for size in (256, 512, 4))


def launch(function: int, *uses: tuple[str, CudaBuffer, Access]) -> Launch:
    kernel = CudaKernel(function, KernelAttributes(f"k{function}", (8,) * len(uses), 0, 1024), CODE)
    return Launch(kernel, (1, 1, 1), (32, 1, 1), 0, tuple(BufferRef(*use) for use in uses))


def prepare(context: Any, iterations: int, plain_starts: int | None) -> CudaRun:
    """Return a run of two kernels: ``a`` is uploaded, ``p`` and ``c`` are zeroed, ``c`` is downloaded."""
    launches = [
        launch(1, ("a", A, Access.INPUT), ("p", P, Access.OUTPUT)),
        launch(2, ("p", P, Access.INPUT), ("c", C, Access.OUTPUT)),
    ]
    return CudaRun(context, MOVER, buffer(8), launches, iterations, Moved([A], [P, C], [C]), plain_starts, lambda _: None)


def device_spans(spans: Sequence[TracedSpan]) -> list[TracedSpan]:
    """Return those of the device, by when they began."""
    return sorted((span for span in spans if span.kind is not SpanKind.STAGE), key=lambda span: span.start_ns)


@pytest.mark.parametrize("plain_starts", [0, 1, None])
def test_every_move_and_launch_has_its_time(plain_starts: int | None, context: Any, gpu: FakeDriver) -> None:
    run = prepare(context, 2, plain_starts)
    before_ns = perf_counter_ns()
    tracer = CudaTracer(context, IDLE)
    after_ns = perf_counter_ns()
    run.start(tracer=tracer)
    run.wait()
    found = device_spans(tracer.spans())
    assert [(span.kind, span.name, span.size_bytes, span.kernel_index, span.iteration) for span in found] == [
        (SpanKind.COPY_TO_DEVICE, "a", 256, 0, 0),
        (SpanKind.ZERO, "p", 512, 0, 0),
        (SpanKind.ZERO, "c", 4, 0, 0),
        (SpanKind.KERNEL, "", 0, 0, 0),
        (SpanKind.KERNEL, "", 0, 1, 0),
        (SpanKind.KERNEL, "", 0, 0, 1),
        (SpanKind.KERNEL, "", 0, 1, 1),
        (SpanKind.COPY_TO_HOST, "c", 4, 0, 0),
    ]
    assert {span.stream for span in found} == {"stream 107: kernels"}
    origin_ns = found[0].start_ns
    assert before_ns <= origin_ns - MILLISECOND <= after_ns  # in which the run noted its begin
    assert [(span.start_ns - origin_ns, span.end_ns - origin_ns) for span in found] == [
        (i * MILLISECOND, (i + 1) * MILLISECOND) for i in range(8)
    ]
    assert gpu.launched == [
        99,
        99,
        99,
        99,
        1,
        2,
        1,
        2,
        99,
        99,
    ]  # before all, what notes the begin, and behind all, what sets the flag
    (working,) = (span for span in tracer.spans() if span.name == "gpu")
    assert (working.start_ns, working.end_ns) == (origin_ns, origin_ns + 8 * MILLISECOND)
    assert "CUDA graph" in tracer.notes[0]
    tracer.close()
    assert gpu.events == {}


def test_a_run_begins_behind_the_copies_that_were_noted(context: Any, gpu: FakeDriver) -> None:
    tracer = CudaTracer(context, IDLE)
    with tracer.upload("x", 1 << 20):
        gpu.now_ms += 3
    prepare(context, 1, 1).start(tracer=tracer)
    with tracer.download("y", 2 << 20):
        gpu.now_ms += 2
    assert gpu.waits == [(KERNELS, 3.0)]
    copies = [span for span in tracer.spans() if span.size_bytes >= 1 << 20]
    assert [(span.kind, span.name, span.stream, span.end_ns - span.start_ns) for span in copies] == [
        (SpanKind.COPY_TO_DEVICE, "x", "stream 105: copies in", 3 * MILLISECOND),
        (SpanKind.COPY_TO_HOST, "y", "stream 106: copies out", 2 * MILLISECOND),
    ]


def test_a_lost_device_tells_no_times(context: Any, gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "cuGetErrorString", lambda _: (SUCCESS, b"illegal"))
    tracer = CudaTracer(context, IDLE)
    with tracer.upload("x", 4):
        pass
    gpu.fault = True
    with pytest.raises(DeviceLost):
        tracer.spans()
    assert context.lost
    tracer.close()  # frees nothing that is lost
    assert len(gpu.events) == 3
