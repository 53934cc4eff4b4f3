"""A device as small as can be, for the registry and the conformance tests: it has two kernels of the examples, as NumPy's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from kaasd.devices.base import DeviceKind, Found, KernelFault, Launch, MappedFile, OutOfMemory, Transfer
from kaasd.devices.trace import HostTracer, Stream, Tracer
from kaasd.libraries.image import read_image
from kaasd.request.device_checks import DeviceProperties, KernelAttributes


def multiply(n: int, a: np.ndarray, b: np.ndarray, p: np.ndarray) -> None:
    p[:n] = a[:n] * b[:n]


def expect(n: int, value: int, a: np.ndarray) -> None:
    if (a[:n] != value).any():
        raise KernelFault("CUDA_ERROR_LAUNCH_FAILED", -1, f"a value is not {value}")


KERNELS = {
    name: SimpleNamespace(attributes=KernelAttributes(name, parameter_size_bytes, 0, 1024), is_ready=True, function=function)
    for name, parameter_size_bytes, function in (("prodKern", (8, 8, 8, 8), multiply), ("expectKern", (8, 4, 8), expect))
}


class SmallBuffer:
    def __init__(self, size_bytes: int, close: Callable[[SmallBuffer], None]) -> None:
        self.size_bytes = size_bytes
        self.content = np.empty(size_bytes, np.uint8)
        self.close = lambda: close(self)

    def zero(self) -> None:
        self.content[:] = 0

    def write(self, data: Any, offset_bytes: int = 0) -> None:
        self.content[offset_bytes : offset_bytes + len(data)] = np.frombuffer(data, np.uint8)

    def read(self, into: Any, offset_bytes: int = 0) -> None:
        into[:] = self.content[offset_bytes : offset_bytes + len(into)].tobytes()


@dataclass(eq=False)
class Ended:  # a copy or a run, which has ended when it has begun
    view: memoryview | None = None
    done = lambda self: True  # noqa: E731
    wait = warm = stop = close = lambda self: None


class SmallRun(Ended):
    printed = ""
    times_ns = 0, 0

    def __init__(self, launches: Any, iterations: int, uploads: Any = (), zeroed: Any = (), downloads: Any = ()) -> None:
        self._iterations, self._uploaded, self._zeroed = iterations, uploads, zeroed
        self.update(launches)
        self.uploads = [memoryview(bytearray(buffer.size_bytes)) for buffer in uploads]
        self.downloads = [memoryview(buffer.content).toreadonly() for buffer in downloads]

    def update(self, launches: Sequence[Any]) -> None:
        self._launches = launches

    def start(
        self, after: Iterable[Transfer] = (), tracer: Tracer[Any] | None = None, priority: int = 0, group: str = ""
    ) -> None:
        for buffer, content in zip(self._uploaded, self.uploads, strict=True):
            buffer.write(content)
        for buffer in self._zeroed:
            buffer.zero()
        for iteration in range(self._iterations):
            for index, launch in enumerate(self._launches):
                arguments = [
                    a.buffer.content.view("u4") if hasattr(a, "buffer") else int.from_bytes(a, "little") for a in launch.arguments
                ]
                with tracer.launch(Stream("kernels"), index, iteration) if tracer else nullcontext():
                    try:
                        launch.kernel.function(*arguments)
                    except KernelFault as fault:
                        raise KernelFault(fault.fault, index, fault.message) from None


class SmallDevice:
    properties = DeviceProperties("small", "two kernels", memory_bytes=64 << 20)
    is_busy = False

    def __init__(self) -> None:
        self._buffers: set[SmallBuffer] = set()

    def load(self, image: bytes) -> Any:
        names = {name for text in read_image(image).ptx for name in re.findall(r"\.entry (\w+)", text)}
        kernels = {name: KERNELS[name] for name in names & KERNELS.keys()}
        return SimpleNamespace(kernels=kernels, host_functions=(), close=lambda: None)

    def allocate(self, size_bytes: int) -> SmallBuffer:
        if (free := self.properties.memory_bytes - sum(buffer.size_bytes for buffer in self._buffers)) < size_bytes:
            raise OutOfMemory(f"{size_bytes} bytes asked, {free} free")
        self._buffers.add(buffer := SmallBuffer(size_bytes, self._buffers.discard))
        return buffer

    def prepare(self, launches: Sequence[Launch], iterations: int, **moved: Any) -> SmallRun:
        return SmallRun(launches, iterations, **moved)

    def reserve(self, groups: Mapping[str, int]) -> None:
        if groups:
            raise ValueError("it has no multiprocessors")

    def active_blocks(self, kernel: Any, launch: Any) -> int:
        return 1

    def run_bytes(self, kernels: Iterable[Any], textures: Iterable[Any] = ()) -> int:
        return 0

    def upload(self, buffer: Any, pieces: Iterable[memoryview], mapped: MappedFile | None = None) -> Ended:
        buffer.write(b"".join(pieces))
        return Ended()

    download = lambda self, buffer, *, stays=False: Ended(memoryview(buffer.content.tobytes()))  # noqa: E731
    tracer = lambda self: HostTracer()  # noqa: E731
    stop = lambda self: False  # noqa: E731
    watch = lambda self, on_lost: None  # noqa: E731
    unmap = close = lambda self: None


KIND = DeviceKind("small", "small", "small", find=lambda _: Found(["small"]), open=lambda *_: SmallDevice(), runs_aside=False)
