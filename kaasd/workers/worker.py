"""The worker process: owns one device, serves the calls of the front in order, exits when the front has gone.

The main thread receives; the device thread opens the device, serves and answers. Started as
``python -m kaasd.workers.worker FD CONFIG``.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from contextlib import ExitStack
from pathlib import Path

from kaas.v1 import admin_pb2, library_pb2, types_pb2
from kaas.worker.v1 import worker_pb2
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


class CallStop:
    """Whether a call is to stop, and why. Set by the receiving thread, looked at by the device thread."""

    def __init__(self) -> None:
        self.error: KaasError | None = None

    def check(self) -> None:
        """Raise the reason if the call is to stop."""
        if self.error is not None:
            raise self.error


class Worker:
    """Serves one front with one device."""

    def __init__(self, config: WorkerConfig, channel: WorkerChannel) -> None:
        self._config = config
        self._channel = channel
        self._changed = threading.Condition()
        self._waiting: deque[tuple[worker_pb2.ToWorker, CallStop]] = deque()
        self._running: tuple[int, CallStop] | None = None
        self._device: Device | None = None
        self._closed = False

    def run(self) -> int:
        """Serve until the front closes its end; return the exit status."""
        status: list[int] = []
        server = threading.Thread(target=lambda: status.append(self._serve()), name="device")
        server.start()
        while (message := self._channel.receive()) is not None:
            if message.HasField("cancel"):
                self._cancel(message.id, message.cancel.deadline_exceeded)
                continue
            with self._changed:
                self._waiting.append((message, CallStop()))
                self._changed.notify()
        with self._changed:
            self._closed = True
            self._changed.notify()
            running = self._running
        if running is not None:
            self._cancel(running[0], deadline_exceeded=False)
        server.join()
        return status[0] if status else 1

    def _cancel(self, call_id: int, deadline_exceeded: bool) -> None:
        stage = "running"
        with self._changed:
            for item in self._waiting:
                if item[0].id == call_id:
                    self._waiting.remove(item)
                    stage = "queued"
                    break
        error: KaasError = (
            DeadlineExceededError(f"the deadline passed while the request was {stage}")
            if deadline_exceeded
            else CancelledError(f"the caller went away while the request was {stage}")
        )
        if stage == "queued":
            self._channel.send(worker_pb2.FromWorker(id=call_id, failed=failed_from_error(error)))
        else:
            self._stop_running(call_id, error)

    def _stop_running(self, call_id: int, error: KaasError) -> None:
        with self._changed:
            if self._running is None or self._running[0] != call_id:
                return
            self._running[1].error = error
            if self._device is not None:
                self._device.stop()
        again = threading.Timer(STOP_REPEAT_S, self._stop_running, (call_id, error))
        again.daemon = True
        again.start()

    def _serve(self) -> int:
        with ExitStack() as stack:
            try:
                store = LmdbStore(
                    self._config.store_path,
                    limit_bytes=self._config.store_limit_bytes,
                    durability=Durability(self._config.durability),
                    chunk_bytes=self._config.chunk_bytes,
                )
                stack.callback(store.close)
                device = open_device(self._config.device, emulator_memory_bytes=self._config.emulator_memory_bytes)
                stack.callback(device.close)
                libraries = Libraries(store, [Path(root) for root in self._config.library_roots])
                executor = Executor(device, store, libraries)
                stack.callback(executor.close)
            except Exception as error:
                _log.debug("cannot start", exc_info=True)
                failure = error if isinstance(error, KaasError) else InternalError(f"cannot open its device or store: {error}")
                self._channel.send(worker_pb2.FromWorker(failed=failed_from_error(failure)))
                os._exit(1)
            self._device = device
            self._channel.send(worker_pb2.FromWorker(ready=worker_pb2.Ready(device=_describe(device.properties))))
            while (item := self._next()) is not None:
                answer = self._answer(executor, *item)
                with self._changed:
                    self._running = None
                answer.id = item[0].id
                self._channel.send(answer)
                if answer.HasField("failed") and answer.failed.device_lost:
                    os._exit(EXIT_DEVICE_LOST)  # Closing a lost device can hang; its memory goes with the process.
        return 0

    def _next(self) -> tuple[worker_pb2.ToWorker, CallStop] | None:
        """Wait for a call and take it as the running one; None when there will be no more."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            message, stop = self._waiting.popleft()
            self._running = (message.id, stop)
            return message, stop

    @staticmethod
    def _answer(executor: Executor, message: worker_pb2.ToWorker, stop: CallStop) -> worker_pb2.FromWorker:
        try:
            match message.WhichOneof("call"):
                case "execute":
                    return worker_pb2.FromWorker(executed=_execute(executor, message.execute, stop))
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


def _execute(executor: Executor, call: worker_pb2.Execute, stop: CallStop) -> worker_pb2.Executed:
    result = executor.execute(
        call.request, keys=call.keys, inputs=call.inputs, return_buffers=call.return_buffers, check_stop=stop.check
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
    """Serve the front at the other end of an inherited socket."""
    descriptor, config = int(arguments[0]), WorkerConfig.from_json(arguments[1])
    logging.basicConfig(level=config.log_level, format=f"%(asctime)s %(levelname)s {config.device} %(name)s: %(message)s")
    # Ctrl-C in a terminal reaches the whole process group; the front decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = WorkerChannel(socket.socket(fileno=descriptor))
    return Worker(config, channel).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
