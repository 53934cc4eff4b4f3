"""The worker process: owns one device, serves the calls of the front, exits when the front has gone.

The main thread owns the device, receives calls and answers them: no hand-over between threads on the way. Started as
``python -m kaasd.worker.main CALLS_FD CANCELLATIONS_FD PROGRESS_FD``; its settings are the first message.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import cast

from kaas.v1 import admin_pb2, types_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import InternalError, KaasError
from kaasd.compiler.cache import SharedCache, StoreCache
from kaasd.compiler.compiler import Compiler
from kaasd.devices.base import CompilingDevice, Device
from kaasd.devices.registry import kind_of, open_device, options_from_text
from kaasd.ipc.channel import Progress, WorkerChannel
from kaasd.ipc.messages import failed_from_error
from kaasd.libraries.registry import Libraries
from kaasd.process import keep_freed_memory, start_log
from kaasd.request.device_checks import DeviceProperties
from kaasd.store.base import Durability
from kaasd.store.directory import StoreIdentity
from kaasd.store.lmdb_store import LmdbStore
from kaasd.worker.cancellation import Listener
from kaasd.worker.commit_signal import CommitSignal
from kaasd.worker.executor import EXIT_DEVICE_LOST, Executor
from kaasd.worker.loop import Loop

EXIT_DEAF = 71
"""It hears of no cancellation any more, by a defect."""
SWITCH_INTERVAL_S = 1e-4
"""While the main thread polls, the writer of the store gets its turn after this long. With 5 ms, 31 commits a second were all."""

_log = logging.getLogger(__name__)


def serve(config: worker_pb2.WorkerConfig, calls: WorkerChannel, cancellations: WorkerChannel, progress: Progress) -> int:
    """Serve the front until it closes its end; return the exit status."""
    with ExitStack() as stack:
        listener = Listener(cancellations, on_failure=lambda: os._exit(EXIT_DEAF))
        commits = CommitSignal()
        stack.callback(commits.close)
        try:
            device, executor = _open(config, commits, stack)
        except Exception as error:
            _log.debug("cannot start", exc_info=True)
            failure = error if isinstance(error, KaasError) else InternalError(f"cannot open its device or store: {error}")
            calls.send(worker_pb2.FromWorker(failed=failed_from_error(failure)))
            return 1
        if config.concurrency > 1:  # Where one at a time runs, nobody else waits until the device has told what was at fault.
            device.watch(partial(_leave, calls))
        serving = Loop(calls, executor, commits, config, progress)
        listener.calls = serving.calls
        calls.send(worker_pb2.FromWorker(ready=_ready(device.properties, executor.memory.limit_bytes)))
        serving.run()
        if executor.device_lost:
            calls.end()  # The front is not to wait until the driver has torn down the context, which takes a tenth of a second.
            os._exit(EXIT_DEVICE_LOST)  # Closing a lost device can hang; its memory goes with the process.
    return 0


def _leave(calls: WorkerChannel) -> None:
    """End at once, in the middle of whatever is under way; the front knows what that is."""
    _log.error("the device is lost: its driver does not answer any more")
    calls.end()
    os._exit(EXIT_DEVICE_LOST)


def _open(config: worker_pb2.WorkerConfig, commits: CommitSignal, stack: ExitStack) -> tuple[Device, Executor]:
    """Open the store and the device, to be closed by ``stack``."""
    store = LmdbStore(
        config.store_path,
        limit_bytes=config.store_limit_bytes,
        durability=Durability(config.durability),
        chunk_bytes=config.chunk_bytes,
        identity=StoreIdentity(
            Path(config.store_path),
            config.store.store_id,
            {file.name: (file.device, file.inode) for file in config.store.files},
        ),
    )
    stack.callback(store.close)
    kind = kind_of(config.device)
    # A folder for each kind: what lies there and how much is the kind's own affair.
    shared = Path(config.code_cache_path) / kind.name if config.code_cache_path else None
    device = open_device(
        config.device,
        options_from_text(config.device, config.device_options),
        code_cache=shared or Path(config.store_path) / "compiled",
        runs=config.concurrency,
    )
    stack.callback(device.close)
    libraries = Libraries(store, [Path(root) for root in config.library_roots])
    compiler = None
    target = cast(CompilingDevice, device).target if kind.compiler is not None else ""
    if target:
        cache = StoreCache(store, Path(config.store_path)) if shared is None else SharedCache(shared)
        stack.callback(cache.close)
        compiler = Compiler(
            kind.name,
            target,
            cache=cache,
            max_time_s=config.max_compile_s,
            max_memory_bytes=config.max_compile_memory_bytes,
            log_level=config.log_level,
            on_end=commits.notify,
        )
        stack.callback(compiler.close)
    executor = Executor(
        device,
        store,
        libraries,
        memory_limit_bytes=config.device_memory_bytes if config.HasField("device_memory_bytes") else None,
        allow_host_wrappers=config.allow_host_wrappers,
        compiler=compiler,
        concurrency=config.concurrency,
        on_commit=commits.notify,
    )
    stack.callback(executor.close)
    return device, executor


def _ready(properties: DeviceProperties, memory_limit_bytes: int) -> worker_pb2.Ready:
    return worker_pb2.Ready(
        device=_describe(properties),
        multiprocessor_unit=properties.multiprocessor_unit,
        memory_limit_bytes=memory_limit_bytes,
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
        multiprocessors=properties.multiprocessor_count,
        max_ptx_version=properties.max_ptx_version,
        targets=properties.targets,
        max_grid=types_pb2.Dim3(**dict(zip("xyz", properties.max_grid, strict=True))),
    )


def _inherited(descriptor: int) -> socket.socket:
    """Return an inherited socket under the lowest free number.

    It has the number that it had in the front, which may hold thousands of connections, and ``select`` takes none from 1024 on.
    """
    low = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return socket.socket(fileno=low)


def main(arguments: list[str]) -> int:
    """Serve the front at the other ends of two inherited sockets, and write down in inherited memory what is begun."""
    keep_freed_memory()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Ctrl-C in a terminal reaches the whole process group, and so may what stops a service: the front decides when workers end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    *sockets, shared = map(int, arguments)
    calls, cancellations = (WorkerChannel(_inherited(descriptor)) for descriptor in sockets)
    progress = Progress(shared)
    os.close(shared)
    first = calls.receive()
    if first is None:  # The front has gone already.
        return 0
    config = first.configure
    start_log(config.log_level, config.device)
    return serve(config, calls, cancellations, progress)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
