"""The worker process: owns one device, serves the calls of the front in order, exits when the front has gone.

The main thread receives calls, serves them and answers: no hand-over between threads on the way. A second thread listens for
stops on a channel of its own. Started as ``python -m kaasd.workers.worker CALLS_FD STOPS_FD CONFIG``.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from kaas.v1 import admin_pb2, library_pb2, types_pb2
from kaas.worker.v1 import worker_pb2
from kaasd.allocator import keep_freed_memory
from kaasd.devices.base import Device
from kaasd.devices.open import open_device
from kaasd.engine.executor import Executor
from kaasd.engine.libraries import Libraries
from kaasd.errors import CancelledError, DeadlineExceededError, InternalError, KaasError
from kaasd.request.target import DeviceProperties
from kaasd.store.base import Durability
from kaasd.store.lmdb_store import LmdbStore
from kaasd.workers.channel import WorkerChannel
from kaasd.workers.config import WorkerConfig
from kaasd.workers.messages import failed_from_error

STOP_REPEAT_S = 0.01
"""A stop is asked for again until the call has ended: the kernel may not have begun when it first came."""
EXIT_DEVICE_LOST = 70

_log = logging.getLogger(__name__)


class Stops:
    """Which calls are to stop: told by the stops channel in a thread of its own, asked by the main thread."""

    def __init__(self, channel: WorkerChannel, device: Device) -> None:
        self._channel = channel
        self._device = device
        self._lock = threading.Lock()
        self._asked: dict[int, KaasError] = {}
        self._running: int | None = None
        self._last_begun = 0
        threading.Thread(target=self._listen, name="stops", daemon=True).start()

    def begin(self, call_id: int) -> None:
        """A call is taken up. Raises the reason if it is to be skipped."""
        with self._lock:
            self._running = self._last_begun = call_id
            self.check("queued")

    def check(self, stage: str = "running") -> None:
        """Raise the reason if the running call is to stop."""
        error = self._asked.get(self._running or 0)
        if error is not None:
            raise type(error)(f"{error.message} while the request was {stage}")

    def end(self) -> None:
        """The running call has ended."""
        with self._lock:
            self._asked.pop(self._running or 0, None)
            self._running = None

    def _listen(self) -> None:
        while (message := self._channel.receive()) is not None:
            if message.cancel.deadline_exceeded:
                self._stop(message.id, DeadlineExceededError("the deadline passed"))
            else:
                self._stop(message.id, CancelledError("the caller went away"))
        with self._lock:
            running = self._running
        if running is not None:
            self._stop(running, CancelledError("the front went away"))

    def _stop(self, call_id: int, error: KaasError) -> None:
        with self._lock:
            if call_id != self._running and call_id <= self._last_begun:
                return  # It has ended.
            self._asked[call_id] = error
            if call_id != self._running:
                return  # It is skipped when its turn comes.
            self._device.stop()
        again = threading.Timer(STOP_REPEAT_S, self._stop, (call_id, error))
        again.daemon = True
        again.start()


class Worker:
    """Serves one front with one device."""

    def __init__(self, config: WorkerConfig, calls: WorkerChannel, stops: WorkerChannel) -> None:
        self._config = config
        self._calls = calls
        self._stops_channel = stops

    def run(self) -> int:
        """Serve until the front closes its end; return the exit status."""
        with ExitStack() as stack:
            try:
                device, executor = self._open(stack)
            except Exception as error:
                _log.debug("cannot start", exc_info=True)
                failure = error if isinstance(error, KaasError) else InternalError(f"cannot open its device or store: {error}")
                self._calls.send(worker_pb2.FromWorker(failed=failed_from_error(failure)))
                return 1
            stops = Stops(self._stops_channel, device)
            self._calls.send(worker_pb2.FromWorker(ready=worker_pb2.Ready(device=_describe(device.properties))))
            while (message := self._calls.receive()) is not None:
                answer = self._answer(executor, message, stops)
                stops.end()
                answer.id = message.id
                self._calls.send(answer)
                if answer.HasField("failed") and answer.failed.device_lost:
                    os._exit(EXIT_DEVICE_LOST)  # Closing a lost device can hang; its memory goes with the process.
        return 0

    def _open(self, stack: ExitStack) -> tuple[Device, Executor]:
        """Open the store and the device, to be closed by ``stack``."""
        config = self._config
        store = LmdbStore(
            config.store_path,
            limit_bytes=config.store_limit_bytes,
            durability=Durability(config.durability),
            chunk_bytes=config.chunk_bytes,
        )
        stack.callback(store.close)
        device = open_device(config.device, emulator_memory_bytes=config.emulator_memory_bytes)
        stack.callback(device.close)
        executor = Executor(device, store, Libraries(store, [Path(root) for root in config.library_roots]))
        stack.callback(executor.close)
        return device, executor

    @staticmethod
    def _answer(executor: Executor, message: worker_pb2.ToWorker, stops: Stops) -> worker_pb2.FromWorker:
        try:
            stops.begin(message.id)
            match message.WhichOneof("call"):
                case "execute":
                    return worker_pb2.FromWorker(executed=_execute(executor, message.execute, stops))
                case "prepare":
                    executor.prepare(message.prepare.request)
                    return worker_pb2.FromWorker(prepared=worker_pb2.Prepared())
                case "inspect":
                    return worker_pb2.FromWorker(inspected=_inspect(executor, message.inspect))
                case unknown:
                    raise InternalError(f"the front sent a call that this worker does not know: {unknown}")
        except KaasError as error:
            return worker_pb2.FromWorker(failed=failed_from_error(error, device_lost=executor.device_lost))
        except Exception:
            _log.exception("call %d", message.id)
            return worker_pb2.FromWorker(failed=failed_from_error(InternalError("a defect of kaasd; its log has the details")))


def _execute(executor: Executor, call: worker_pb2.Execute, stops: Stops) -> worker_pb2.Executed:
    result = executor.execute(
        call.request, keys=call.keys, inputs=call.inputs, return_buffers=call.return_buffers, check_stop=stops.check
    )
    return worker_pb2.Executed(
        outputs=result.outputs,
        versions=result.versions,
        timing=types_pb2.Timing(plan_ns=result.plan_ns, load_ns=result.load_ns, run_ns=result.run_ns, commit_ns=result.commit_ns),
        kernels_launched=result.kernels_launched,
        memory_used_bytes=executor.memory_used_bytes,
    )


def _inspect(executor: Executor, call: worker_pb2.Inspect) -> library_pb2.InspectLibraryResponse:
    library, kernels = executor.inspect(call.library, call.content if call.HasField("content") else None)
    return library_pb2.InspectLibraryResponse(
        id=library.id,
        kind=library.kind,
        kernels=[
            library_pb2.KernelInfo(
                name=attributes.name,
                parameter_size_bytes=attributes.parameter_size_bytes,
                static_shared_memory_bytes=attributes.static_shared_memory_bytes,
                max_threads_per_block=attributes.max_threads_per_block,
            )
            for attributes in kernels
        ],
        device=executor.device_name,
    )


def _describe(properties: DeviceProperties) -> admin_pb2.Device:
    major, minor = properties.compute_capability
    return admin_pb2.Device(
        name=properties.name,
        model=properties.model,
        compute_capability=f"{major}.{minor}",
        memory_bytes=properties.memory_bytes,
        warp_size=properties.warp_size,
        max_threads_per_block=properties.max_threads_per_block,
        max_shared_memory_bytes=properties.max_shared_memory_bytes,
        max_block=types_pb2.Dim3(**dict(zip("xyz", properties.max_block, strict=True))),
        max_grid=types_pb2.Dim3(**dict(zip("xyz", properties.max_grid, strict=True))),
    )


def main(arguments: list[str]) -> int:
    """Serve the front at the other ends of two inherited sockets."""
    keep_freed_memory()
    calls, stops = (WorkerChannel(socket.socket(fileno=int(descriptor))) for descriptor in arguments[:2])
    config = WorkerConfig.from_json(arguments[2])
    logging.basicConfig(level=config.log_level, format=f"%(asctime)s %(levelname)s {config.device} %(name)s: %(message)s")
    # Ctrl-C in a terminal reaches the whole process group; the front decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Worker(config, calls, stops).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
