"""What every row needs to know: where it runs, how long it may take, and how the daemon and its rivals are started."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import uvloop

from benchmarks.alternatives.server import STREAM_METHOD, UNARY_METHOD, alternative_server
from benchmarks.report import Row
from examples.local_daemon import local_daemon
from kaas.v1.executor_pb2 import InvokeRequest, InvokeResponse, InvokeStreamRequest, InvokeStreamResponse

T = TypeVar("T")

NO_GPU = "needs a CUDA GPU"
TIMEOUT_S = 60
"""Of any one call: what takes longer is broken."""

STAGES = ("queue", "plan", "load", "run", "commit", "total")
"""As the server times them; the total is from a request's arrival to its reply."""


@dataclass(frozen=True)
class Bench:
    """How the benchmarks are run."""

    device: str
    """``emulator`` or ``cuda:0``."""
    quick: bool = False
    """Fewer sizes and shorter measurements: to see that every row runs."""
    devices: int = 1
    """How many there are to be, for the rows that measure several."""

    @property
    def all_devices(self) -> tuple[str, ...]:
        """As options of a daemon, beside its device."""
        return self.first_devices(self.devices)

    def first_devices(self, number: int) -> tuple[str, ...]:
        """Return what has a daemon use so many devices."""
        if self.cuda:
            return tuple(option for ordinal in range(1, number) for option in ("--device", f"cuda:{ordinal}"))
        return ("--emulator-devices", str(number)) if number > 1 else ()

    @property
    def cuda(self) -> bool:
        """Whether there is a bare GPU to compare with."""
        return self.device.startswith("cuda")

    def pick(self, full: T, quick: T) -> T:
        """Return what suits a whole or a quick run."""
        return quick if self.quick else full

    def daemon(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Any:
        """Run kaasd for the time of a ``with`` block, on its device; the block gets its address."""
        return local_daemon("--device", self.device, "--log-level", "WARNING", *arguments, environ=environ)


@dataclass(frozen=True)
class Section:
    """Rows that are measured together."""

    name: str
    title: str
    rows: Callable[[Bench], Iterable[Row]]
    emulated: bool = False
    """Whether the emulated device is measured with it unless told otherwise."""


@dataclass(frozen=True)
class Rival:
    """A server of dot products."""

    address: str
    unary: str
    stream: str

    def call(self, channel: grpc.aio.Channel) -> Any:
        """Return its unary method."""
        return channel.unary_unary(self.unary, InvokeRequest.SerializeToString, InvokeResponse.FromString)

    def open(self, channel: grpc.aio.Channel) -> Any:
        """Return a new stream."""
        method = channel.stream_stream(self.stream, InvokeStreamRequest.SerializeToString, InvokeStreamResponse.FromString)
        return method()


@dataclass
class Rivals:
    """The servers that were started, by name, and why others were not."""

    servers: dict[str, Rival] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def start_rivals(bench: Bench, stack: ExitStack) -> Rivals:
    """Start kaasd and the gRPC servers beside which it is measured; they run until ``stack`` is closed."""
    rivals = Rivals()
    kaasd = stack.enter_context(bench.daemon())
    rivals.servers["kaasd"] = Rival(kaasd, "/kaas.v1.ExecutorService/Invoke", "/kaas.v1.ExecutorService/InvokeStream")
    others = {"empty echo": "echo", "gRPC + CuPy": "cupy_server"}
    if not bench.cuda:
        rivals.missing["gRPC + CuPy"] = NO_GPU
    elif importlib.util.find_spec("cupy") is None:
        rivals.missing["gRPC + CuPy"] = "cupy not installed"
    for name, module in others.items():
        if name not in rivals.missing:
            address = stack.enter_context(alternative_server(f"benchmarks.alternatives.{module}"))
            rivals.servers[name] = Rival(address, UNARY_METHOD, STREAM_METHOD)
    return rivals


@contextmanager
def event_loop() -> Iterator[Callable[[Any], Any]]:
    """Yield what runs a coroutine to its end, on one event loop for the time of a ``with`` block."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.run


def stages(timings: Iterable[Any]) -> str:
    """Return where the server says that requests spend their time, as a note; the client's ``Timing`` or the wire's."""
    timings = list(timings)
    middle = {stage: sorted(getattr(timing, f"{stage}_ns") for timing in timings)[len(timings) // 2] / 1e3 for stage in STAGES}
    return ", ".join(f"{stage} {value:,.0f}" for stage, value in middle.items()) + " µs"


def machine() -> dict[str, str | int | None]:
    """Return what the figures depend on."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpc": grpc.__version__,
    }
