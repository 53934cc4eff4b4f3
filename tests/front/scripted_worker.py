"""A worker process that does as its calls say, well or badly.

Its start is scripted by ``WorkerConfig.device_options``, a call by ``Execute.keys["do"]``; see ``_begin`` and ``_execute``. The
directory ``WorkerConfig.store_path`` is where it notes what outlives it.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from kaas.v1 import admin_pb2, executor_pb2, library_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import (
    CancelledError,
    DeadlineExceededError,
    InternalError,
    InvalidLibraryError,
    KaasError,
    KernelFaultError,
    OutOfDeviceMemoryError,
    StoreFullError,
    WorkerRestartingError,
)
from kaasd.ipc.channel import Progress, WorkerChannel
from kaasd.ipc.messages import failed_from_error


class ScriptedWorker:
    """Serves its calls in order. What it holds ends when it is cancelled, or released by another call."""

    def __init__(self, calls: socket.socket, cancellations: socket.socket, progress: Progress) -> None:
        self._progress = progress
        self._socket = calls
        self._calls, self._cancellations = WorkerChannel(calls), WorkerChannel(cancellations)
        self._known: set[bytes] = set()
        self._held: dict[int, str] = {}
        self._waiting: list[worker_pb2.ToWorker] = []
        self._reserved: set[str] = set()
        """Groups with a slot of their own."""
        self._own: dict[int, str] = {}
        """Calls that have had such a slot, and their groups."""
        self._log: list[Any] = []
        if (first := self._calls.receive()) is None:
            os._exit(0)
        self._config = first.configure
        self._notes = Path(self._config.store_path)
        self._life = self._count("lives")

    def run(self) -> None:
        self._begin(self._config.device_options)
        while True:
            for channel in select.select([self._calls, self._cancellations], (), ())[0]:
                while True:
                    if (message := channel.receive()) is None:
                        os._exit(0)
                    self._take(message)
                    while (call := self._next()) is not None:
                        self._execute(call)
                    if not channel.has_begun:
                        break

    def _next(self) -> worker_pb2.ToWorker | None:
        """Take out the call that is to begin next."""
        own = {self._own[call_id] for call_id in self._held if call_id in self._own}
        for index, call in enumerate(self._waiting):
            if call.execute.group in self._reserved - own:
                self._own[call.id] = call.execute.group
                return self._waiting.pop(index)
        if self._waiting and len(self._held) - len(own) < self._config.concurrency:
            return self._waiting.pop(0)
        return None

    def _begin(self, script: str) -> None:
        if script == "die" or (script == "die in second life" and self._life == 2):
            os._exit(3)
        if script == "fail" or (script == "fail until told" and self._life > 1 and not (self._notes / "start").exists()):
            self._fail(0, StoreFullError("no room here"))
            os._exit(1)
        if script == "fail for suspects" and self._config.concurrency == 1:
            self._fail(0, StoreFullError("no room here"))
            os._exit(1)
        if script == "deaf":
            Path(self._notes / "deaf").touch()
            while True:
                select.select((), (), (), 60)
        device = admin_pb2.Device(name=self._config.device, model="scripted", memory_bytes=self._life)
        unit = 8 if script == "divides" else 0
        self._calls.send(worker_pb2.FromWorker(ready=worker_pb2.Ready(device=device, multiprocessor_unit=unit)))

    def _take(self, message: worker_pb2.ToWorker) -> None:
        match message.WhichOneof("call"):
            case "ping":
                self._cancellations.send(worker_pb2.FromWorker(pong=worker_pb2.Pong()))
            case "cancel":
                deadline = message.cancel.deadline_exceeded
                self._log.append(["cancel", message.id, "operator" if message.cancel.by_operator else deadline])
                waiting = [call for call in self._waiting if call.id == message.id]
                if waiting or self._held.get(message.id) == "hold":
                    self._waiting = [call for call in self._waiting if call not in waiting]
                    self._held.pop(message.id, None)
                    self._fail(message.id, DeadlineExceededError("at last") if deadline else CancelledError("at last"))
            case "execute":
                self._waiting.append(message)
            case "prepare" | "inspect" if self._config.device_options == "holds what is no request":
                self._held[message.id] = "hold"
            case "prepare":
                self._log.append(["prepare", len(message.prepare.request.content)])
                if self._config.device_options == "die preparing":
                    self._progress.begin(message.id)
                    os._exit(3)
                if self._config.device_options == "unable":
                    self._fail(message.id, InvalidLibraryError(f"{self._config.device} cannot load it"))
                else:
                    self._calls.send(worker_pb2.FromWorker(id=message.id, prepared=worker_pb2.Prepared()))
            case "inspect":
                has_content = message.inspect.HasField("content")
                inspected = library_pb2.InspectLibraryResponse(
                    device=f"{self._config.device} {message.inspect.library} {message.inspect.content!r} {has_content}"
                )
                self._calls.send(worker_pb2.FromWorker(id=message.id, inspected=inspected))
            case "reserve":
                self._reserved = set(message.reserve.multiprocessors)
            case "hold_pages":
                self._log.append(["hold_pages", message.hold_pages.allowed])
                if not message.hold_pages.allowed:
                    self._release_pages(message.id)
            case "forget_library":
                self._log.append(["forget_library", message.forget_library.library])

    def _release_pages(self, message_id: int) -> None:
        match self._config.device_options:
            case "keeps pages":
                return
            case "cannot release pages":
                self._fail(message_id, InternalError("they are held"))
            case "dies of releasing pages" if self._life == 1:
                os._exit(3)
            case _:
                self._calls.send(worker_pb2.FromWorker(id=message_id, pages_released=worker_pb2.PagesReleased()))

    def _execute(self, message: worker_pb2.ToWorker) -> None:
        execute = message.execute
        script = execute.keys["do"]
        self._progress.begin(message.id)
        self._log.append([script, message.id, len(execute.request.content)])
        if execute.request.content:
            assert execute.request.digest == sha256(execute.request.content).digest()
            self._known.add(execute.request.digest)
        if script == "forget":
            self._known.clear()
        elif execute.request.digest not in self._known:
            self._calls.send(worker_pb2.FromWorker(id=message.id, unknown_request=worker_pb2.UnknownRequest()))
            self._progress.end(message.id)
            return
        match script.split():
            case ["hold" | "deaf"]:
                self._held[message.id] = script
            case ["commit"]:
                self._progress.commit(message.id)
                self._held[message.id] = script
            case ["release"]:
                for call_id in list(self._held):
                    self._answer(call_id, {})
                self._answer(message.id, {})
            case ["fault", "of", "the", "last", "one"]:
                suspects = 1 + len(self._held)
                self._lose_device(KernelFaultError("illegal address", {"suspects": str(suspects)}), message.id)
            case ["fault", suspects]:
                self._lose_device(KernelFaultError("illegal address", {"suspects": suspects}), message.id)
            case ["fault", suspects, "once"] if self._count("faults") == 1:
                self._lose_device(KernelFaultError("illegal address", {"suspects": suspects}), message.id)
            case ["die", "once,", "needing", "room"] if self._count("deaths") == 1:
                os._exit(3)
            case ["die", "once,", "needing", "room"] if self._config.concurrency == 1:
                self._fail(message.id, OutOfDeviceMemoryError("no room beside another"))
            case ["die", "once,", "then", "deaf" | "hold" as then]:
                if self._count("deaths") == 1:
                    os._exit(3)
                self._held[message.id] = then
            case ["need", "room"] if self._count("needs") == 1:
                self._fail(message.id, OutOfDeviceMemoryError("no room beside another"))
            case ["fail"]:
                self._fail(message.id, StoreFullError("no room there"))
            case ["die"]:
                os._exit(3)
            case ["die", "once"] if self._count("deaths") == 1:
                os._exit(3)
            case ["bring"]:
                self._answer(message.id, {}, brought_bytes=1 << 30)
            case ["drop"]:
                self._answer(message.id, {}, dropped="gone")
            case ["die", "committing"]:
                self._progress.commit(message.id)
                os._exit(3)
            case ["garbage"]:
                self._socket.sendall(b"\x03\0\0\0\xff\xff\xff")
                select.select((), (), ())  # goes on, with its memory damaged
            case _:
                self._answer(
                    message.id,
                    {
                        "pid": os.getpid(),
                        "log": self._log,
                        "keys": dict(execute.keys),
                        "inputs": {name: len(data) for name, data in execute.inputs.items()},
                        "return_buffers": list(execute.return_buffers),
                        "traced": execute.trace_from_ns > 0,
                        "only_call": message.only_call,
                        "awaited": [[value.key, value.offset_bytes, value.size_bytes] for value in execute.awaited],
                        "max_device_memory": execute.max_device_memory_bytes,
                    },
                )

    def _lose_device(self, error: KaasError, call_id: int) -> None:
        """Fail a call, and all that is held beside it, and exit, as a worker whose device is lost."""
        self._fail(call_id, error, device_lost=True)
        for other, script in self._held.items():
            beside = error if script == "deaf" else WorkerRestartingError("beside it")
            self._fail(other, beside, device_lost=True)
        os._exit(70)

    def _fail(self, call_id: int, error: KaasError, *, device_lost: bool = False) -> None:
        self._calls.send(worker_pb2.FromWorker(id=call_id, failed=failed_from_error(error, device_lost)))
        self._progress.end(call_id)

    def _answer(self, call_id: int, seen: dict[str, Any], dropped: str = "", brought_bytes: int = 0) -> None:
        self._held.pop(call_id, None)
        reply = executor_pb2.InvokeResponse(device=self._config.device, printed=json.dumps(seen))
        reply.timing.run_ns = 5
        if seen.get("traced"):
            reply.trace.SetInParent()
        executed = worker_pb2.Executed(reply=reply, kernels_launched=3, memory_used_bytes=1000, device_ns=5)
        if brought_bytes:  # at 1 GiB/s
            executed.brought_bytes, reply.timing.load_ns = brought_bytes, brought_bytes * 10**9 >> 30
            executed.reply.timing.load_ns = reply.timing.load_ns
        if dropped:
            executed.dropped.add(key=dropped, size_bytes=1)
            executed.device_full = True
        self._calls.send(worker_pb2.FromWorker(id=call_id, executed=executed))
        self._progress.end(call_id)

    def _count(self, what: str) -> int:
        """Return how often this was called for ``what``, in all lives."""
        with (self._notes / what).open("a+") as file:
            file.write("x")
            file.flush()
            return file.seek(0, os.SEEK_END)


if __name__ == "__main__":
    calls, cancellations, shared = map(int, sys.argv[1:])
    ScriptedWorker(socket.socket(fileno=calls), socket.socket(fileno=cancellations), Progress(shared)).run()
