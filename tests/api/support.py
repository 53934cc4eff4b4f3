"""A server on a unix socket for tests: the real servicers and store, and a dispatcher that does as it is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from kaas.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    executor_pb2,
    executor_pb2_grpc,
    kv_pb2_grpc,
    library_pb2,
    library_pb2_grpc,
    types_pb2,
)
from kaas_core.errors import DrainingError, RequestNotFoundError
from kaasd.api.server import Server, start_server
from kaasd.config import Settings
from kaasd.front.functions import FunctionRegistry
from kaasd.front.groups import Groups
from kaasd.front.needs import StoredInput
from kaasd.front.quarantine import Quarantine
from kaasd.front.request_ids import IdentifiedCall
from kaasd.front.reservations import Reservable
from kaasd.front.store_watch import StoreWatch
from kaasd.ipc.messages import SerializedRequest
from kaasd.libraries.registry import Libraries
from kaasd.store.lmdb_store import LmdbStore

WAIT_S = 30.0
"""How long anything here may take before a test fails; nothing waits that long when it works."""

LIBRARY = "sha256:" + "0" * 64
PTX = b"""//
.version 8.0
.target sm_90
.address_size 64
.visible .entry nothing()
{
    ret;
}
"""


@dataclass
class Held:
    """An execution that runs until it is released or cancelled."""

    result: executor_pb2.InvokeResponse = field(default_factory=executor_pb2.InvokeResponse)
    started: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> executor_pb2.InvokeResponse:
        self._loop = asyncio.get_running_loop()
        self.started.set()
        try:
            await self._released.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return self.result

    def release(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._released.set)


@dataclass(frozen=True)
class Call:
    """A call that the dispatcher got."""

    method: str
    arguments: Mapping[str, Any]


class FakeDispatcher:
    """Answers each call with the next thing that was expected of its method, and records the call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.draining = False
        self.listed: list[admin_pb2.RequestInfo] = []
        """What waits and runs."""
        self.pages_are_released = False
        self.idle = asyncio.Event()
        self.ready_changes: asyncio.Queue[bool] = asyncio.Queue()
        """Whether a worker is ready and calls are taken, from the second answer of ``readiness`` on."""
        self._expected: dict[str, deque[Any]] = {
            method: deque() for method in ("execute", "prepare", "inspect", "pages_released")
        }
        self.senders: list[Hashable] = []
        """Of each request that was to be executed."""
        self.device_bytes: list[int] = []
        """The same."""

    def expect(self, method: str, *results: Any) -> None:
        """Have the next calls of ``method`` return, or raise, or run ``results``."""
        self._expected[method].extend(results)

    def assert_all_used(self) -> None:
        left = {method: list(results) for method, results in self._expected.items() if results}
        assert not left, f"expected, but never called: {left}"

    async def execute(
        self,
        request: SerializedRequest,
        *,
        keys: Mapping[str, str] | None = None,
        inputs: Mapping[str, bytes] | None = None,
        return_buffers: Sequence[str] = (),
        device: str = "",
        deadline: float | None = None,
        trace: bool = False,
        function: str = "",
        sender: Callable[[], Hashable] = lambda: None,
        identified: IdentifiedCall | None = None,
        stays: Mapping[str, StoredInput] = MappingProxyType({}),
        device_bytes: int = 0,
        group: str = "default",
        priority: int = 0,
    ) -> Any:
        self.senders.append(sender())
        self.device_bytes.append(device_bytes)
        return await self._answer(
            "execute",
            request=request,
            keys=dict(keys or {}),
            inputs=dict(inputs or {}),
            return_buffers=list(return_buffers),
            device=device,
            remaining=_remaining(deadline),
            trace=trace,
            function=function,
            **({} if identified is None else {"reply_key": identified.as_key}),
            **({} if group == "default" else {"group": group}),
            **({} if priority == 0 else {"priority": priority}),
        )

    async def prepare(self, request: SerializedRequest, deadline: float | None = None) -> None:
        await self._answer("prepare", request=request, remaining=_remaining(deadline))

    async def inspect(self, library: str, content: bytes | None = None, deadline: float | None = None) -> Any:
        return await self._answer("inspect", library=library, content=content, remaining=_remaining(deadline))

    def forget_library(self, library_id: str) -> None:
        self.calls.append(Call("forget_library", {"library_id": library_id}))

    @asynccontextmanager
    async def pages_released(self) -> AsyncIterator[None]:
        await self._answer("pages_released")
        self.pages_are_released = True
        try:
            yield
        finally:
            self.pages_are_released = False

    async def drain(self, *, for_good: bool = False) -> None:
        self.draining = True
        self.ready_changes.put_nowait(False)
        await self.idle.wait()

    def resume(self) -> None:
        self.draining = False
        self.ready_changes.put_nowait(True)

    async def drain_device(self, name: str) -> None:
        self.calls.append(Call("drain_device", {"name": name}))

    def resume_device(self, name: str) -> None:
        self.calls.append(Call("resume_device", {"name": name}))

    async def readiness(self) -> AsyncIterator[bool]:
        yield True
        while True:
            yield await self.ready_changes.get()

    def requests(self, after: str, limit: int) -> list[admin_pb2.RequestInfo]:
        return [request for request in self.listed if request.id > after][:limit]

    def cancel_request(self, request_id: str) -> None:
        self.calls.append(Call("cancel_request", {"request_id": request_id}))
        if request_id not in {request.id for request in self.listed}:
            raise RequestNotFoundError(f"no request {request_id!r}")

    def reservable(self) -> list[Reservable]:
        return []

    def reserve(self, groups: Mapping[str, int]) -> None:
        raise AssertionError("no device can")

    def devices(self) -> list[admin_pb2.Device]:
        return [admin_pb2.Device(name="emulator", warp_size=32, state=admin_pb2.WORKER_STATE_READY)]

    def stats(self) -> list[admin_pb2.DeviceStats]:
        return [admin_pb2.DeviceStats(device="emulator", requests_succeeded=7)]

    async def _answer(self, method: str, **arguments: Any) -> Any:
        if self.draining:
            raise DrainingError("the server is draining")
        self.calls.append(Call(method, arguments))
        assert self._expected[method], f"a call of {method} that no test expected"
        result = self._expected[method].popleft()
        if isinstance(result, Exception):
            raise result
        return await result.run() if isinstance(result, Held) else result


class Stubs:
    """A client of every service over one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.executor = executor_pb2_grpc.ExecutorServiceStub(channel)
        self.library = library_pb2_grpc.LibraryServiceStub(channel)
        self.kv = kv_pb2_grpc.KvServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)


class Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT_S)
        self.loop.close()


@dataclass
class Running:
    """A server and all that a test needs of it."""

    server: Server
    store: LmdbStore
    dispatcher: FakeDispatcher
    quarantine: Quarantine
    stubs: Stubs
    background: Background


@contextmanager
def running_server(
    directory: Path, dispatcher: FakeDispatcher, store_limit_bytes: int = 256 << 20, **settings: Any
) -> Iterator[Running]:
    """Serve on a unix socket in ``directory``, on a store that stays there."""
    listen = settings.pop("listen", (f"unix:{directory}/kaasd.sock",))
    groups = settings.pop("groups", ())
    roots = settings.pop("library_roots", ())
    values = Settings(
        listen=listen, store=directory / "store", store_limit_bytes=store_limit_bytes, library_roots=roots, **settings
    )
    background = Background()
    quarantine = Quarantine()
    store = LmdbStore(values.store, limit_bytes=store_limit_bytes, chunk_bytes=64 << 10)

    async def start() -> Server:
        return await start_server(
            values,
            store=store,
            functions=FunctionRegistry(store),
            libraries=Libraries(store, roots),
            dispatcher=dispatcher,
            quarantine=quarantine,
            groups=Groups(store, groups, dispatcher),
            watch=StoreWatch(store.identity, store.length_problem, store.tree_problem),
        )

    try:
        server = background.run(start())
        try:
            with grpc.insecure_channel(server.addresses[0]) as channel:
                yield Running(server, store, dispatcher, quarantine, Stubs(channel), background)
        finally:
            background.run(server.stop())
    finally:
        store.close()
        background.close()


@dataclass(frozen=True)
class Failure:
    """A failed call, as a client sees it."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: Mapping[str, str]
    fields: list[str]
    retry_s: float | None


def failure(call: Callable[[], Any]) -> Failure:
    """Return how ``call`` fails."""
    try:
        call()
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        details = [] if status is None else status.details
        return read_failure(error.code(), error.details() or "", details)
    raise AssertionError("the call succeeded")


def read_failure(code: grpc.StatusCode, message: str, details: Any) -> Failure:
    """Return a failure from the details of its status."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in details:
        assert any(detail.Unpack(part) for part in (info, bad, retry))
    delay = retry.retry_delay.ToMilliseconds() / 1000 if retry.HasField("retry_delay") else None
    assert info.domain in ("", "kaas")
    fields = [violation.field for violation in bad.field_violations]
    return Failure(code, message, info.reason, dict(info.metadata), fields, delay)


def wait_for_failure(server: Running, reason: str) -> None:
    """Return once the server has counted its one failed call, of ``reason``; by then that call has let go of all it used."""
    end = time.monotonic() + WAIT_S
    counted: dict[str, int] = {}
    while reason not in counted:
        assert time.monotonic() < end, f"no call failed with {reason}"
        counted = dict(server.stubs.admin.GetStats(admin_pb2.GetStatsRequest()).failures_by_reason)
    assert counted == {reason: 1}


def product_request() -> types_pb2.Request:
    """Return a request that reads ``a`` (16 bytes), writes ``c`` (4 bytes), and has a temporary ``t`` (8 bytes)."""

    def use(buffer: str, access: int) -> types_pb2.Argument:
        return types_pb2.Argument(buffer=types_pb2.BufferArgument(buffer=buffer, access=access))

    return types_pb2.Request(
        kernels=[
            types_pb2.KernelSpec(
                library=LIBRARY,
                name="product",
                grid=types_pb2.Dim3(x=1),
                block=types_pb2.Dim3(x=4),
                arguments=[
                    use("a", types_pb2.ACCESS_INPUT),
                    use("t", types_pb2.ACCESS_TEMPORARY),
                    use("c", types_pb2.ACCESS_OUTPUT),
                ],
            )
        ],
        buffers=[
            types_pb2.BufferSpec(name="a", size_bytes=16),
            types_pb2.BufferSpec(name="t", size_bytes=8, ephemeral=True),
            types_pb2.BufferSpec(name="c", size_bytes=4),
        ],
    )


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - asyncio.get_running_loop().time()


def inspected() -> library_pb2.InspectLibraryResponse:
    """Return a description of ``PTX``."""
    return library_pb2.InspectLibraryResponse(
        kind=library_pb2.LIBRARY_KIND_PTX, device="emulator", kernels=[library_pb2.KernelInfo(name="nothing")]
    )
