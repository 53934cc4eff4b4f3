"""The daemon put together: store, workers, server; and taken apart in the other order."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import CancelledError, InvalidArgumentError, KaasError
from kaasd.api.server import Server, start_server
from kaasd.config import Settings
from kaasd.devices.code_directory import CodeDirectory
from kaasd.devices.registry import available, kind_of, options_to_text
from kaasd.front.dispatcher import Dispatcher
from kaasd.front.functions import FunctionRegistry
from kaasd.front.groups import Groups
from kaasd.front.in_flight import BusyPoll
from kaasd.front.quarantine import Quarantine
from kaasd.front.request_queue import RequestQueue
from kaasd.front.store_watch import StoreWatch
from kaasd.front.supervisor import Supervisor
from kaasd.libraries.registry import Libraries
from kaasd.scheduling import Policy, Scheduler
from kaasd.store.backup import remove_left_copies
from kaasd.store.directory import LOCK_FILE, StoreIdentity
from kaasd.store.environment import make_private
from kaasd.store.lmdb_store import LmdbStore

CORES_FOR_ONE = 2
"""That a worker may poll for its next call instead of sleeping. With several callers it takes from them what it gives to one."""
CORES_FOR_TWO = 4
"""That front and worker may, also beside other calls."""
LEAST_FOR_SPARE_BYTES = 8 << 30
"""Memory of a device that has a spare though nobody asked for one."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOP_GRACE_S = 5.0
"""After the drain: how long the calls that are left may go on before they are cancelled. Those are calls that only read, and
requests that the drain has not waited for."""

_log = logging.getLogger(__name__)


class StoreInUse(Exception):
    """Another daemon has the store's directory."""


async def serve(settings: Settings) -> None:
    """Run the daemon until SIGTERM or SIGINT, then drain; a second one ends it at once.

    Prints ``listening on …`` when requests can come.
    """
    stop = _stop_on_signal()
    devices = available(settings.devices, settings.emulator_devices)
    owners, policies = _owners(settings, devices), _policies(settings, devices)
    if settings.allow_host_wrappers:
        _log.warning("host wrappers are allowed: whoever can connect can run any code as user %d", os.getuid())
    if settings.code_cache is not None:
        CodeDirectory(settings.code_cache)  # so that one which cannot be used is told of at once
    async with AsyncExitStack() as stack:
        settings.store.mkdir(parents=True, exist_ok=True, mode=0o700)
        stack.enter_context(_locked(settings.store / LOCK_FILE))
        remove_left_copies(settings.store)
        store = await _opened(settings, stop)
        if store is None:
            return
        stack.callback(store.close)
        watch = StoreWatch(store.identity, store.length_problem, store.tree_problem)
        quarantine = Quarantine()
        supervisors = [
            Supervisor(
                _worker_config(settings, device, store.identity),
                settings.max_queue,
                watch.check,
                quarantine,
                has_spare=kind_of(device).has_spares if settings.spares is None else settings.spares > 0,
                least_memory_for_spare=LEAST_FOR_SPARE_BYTES if settings.spares is None else 0,
            )
            for device in devices
        ]
        for supervisor in supervisors:
            stack.push_async_callback(supervisor.close)
        if not await _started(supervisors, stop):
            return
        busy_poll = BusyPoll(settings.busy_poll_s if _has_cores(CORES_FOR_TWO) else 0.0)
        scheduler = Scheduler(policy=settings.policy, owners=owners, policies=policies)
        queue = RequestQueue(scheduler, devices, max_queued=settings.max_queue, max_queued_bytes=settings.max_queued_bytes)
        stack.callback(queue.close)
        dispatcher = Dispatcher(supervisors, settings.max_run_s, busy_poll, queue)
        groups = Groups(store, settings.groups, dispatcher)
        groups.listen(queue)
        server = await start_server(
            settings,
            store=store,
            functions=FunctionRegistry(store),
            libraries=Libraries(store, settings.library_roots),
            dispatcher=dispatcher,
            quarantine=quarantine,
            groups=groups,
            watch=watch,
        )
        stack.push_async_callback(server.stop, STOP_GRACE_S)
        for address in server.addresses:
            print(f"listening on {address}", flush=True)
        lost = await _stopped_or_lost(stop, watch)
        if lost is not None:
            _log.critical("the store is lost, so all requests fail and kaasd ends: %s", lost)
            dispatcher.give_up(lost)
            store.abandon()
        await _drain(server, settings.drain_timeout_s)
        if lost is not None:
            raise lost


def _policies(settings: Settings, devices: Sequence[str]) -> dict[str, Policy]:
    """Return the policies of the devices that have one of their own. Raises ``InvalidArgumentError``."""
    policies = {device: policy for policy, names in settings.device_policies for device in names}
    _check_devices("--device-policy", policies, devices)
    return policies


def _owners(settings: Settings, devices: Sequence[str]) -> dict[str, str]:
    """Return the groups that have devices of their own, by device. Raises ``InvalidArgumentError``."""
    owners = dict(settings.device_groups)
    _check_devices("--device-group", owners, devices)
    policies = _policies(settings, devices)
    for device in owners:
        if (policy := policies.get(device, settings.policy)) is not Policy.STATIC:
            raise InvalidArgumentError(f"--device-group: the policy of {device} is {policy.value}; it is for devices of static")
    return owners


def _check_devices(flag: str, named: Iterable[str], devices: Sequence[str]) -> None:
    for device in named:
        if device not in devices:
            raise InvalidArgumentError(f"{flag}: there is no device {device!r}; there are: {', '.join(devices)}")


def _stop_on_signal() -> asyncio.Event:
    """Return what the first SIGTERM or SIGINT sets. The second one has the system end this process, whatever it is doing then.

    Its workers end with it, and the store stays whole.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        stop.set()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, signalled)
    return stop


async def _opened(settings: Settings, stop: asyncio.Event) -> LmdbStore | None:
    """Open the store, which takes long where it is large and of an older format; return None where the daemon is to stop then."""
    try:
        return await asyncio.to_thread(
            LmdbStore,
            settings.store,
            limit_bytes=settings.store_limit_bytes,
            durability=settings.durability,
            chunk_bytes=settings.chunk_bytes,
            is_stopped=stop.is_set,
        )
    except CancelledError as error:
        _log.info("%s", error)
        return None


async def _stopped_or_lost(stop: asyncio.Event, watch: StoreWatch) -> KaasError | None:
    """Return when the daemon is to stop: with an error where its store is lost."""
    stopped, lost = asyncio.create_task(stop.wait()), asyncio.create_task(watch.until_lost())
    try:
        await asyncio.wait((stopped, lost), return_when=asyncio.FIRST_COMPLETED)
        return lost.result() if lost.done() else None
    finally:
        stopped.cancel()
        lost.cancel()


async def _started(supervisors: Sequence[Supervisor], stop: asyncio.Event) -> bool:
    """Wait until all workers are ready, or until the daemon is to stop; return whether they are."""
    if stop.is_set():
        return False
    starting: asyncio.Future[list[None]] = asyncio.gather(*(supervisor.start() for supervisor in supervisors))
    stopping: asyncio.Future[bool] = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        return starting.done()
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)


async def _drain(server: Server, timeout_s: float) -> None:
    _log.info("draining")
    try:
        await asyncio.wait_for(server.drain(), timeout_s)
    except TimeoutError:
        _log.warning("requests still run after %g s; what still runs in another %g s is cancelled", timeout_s, STOP_GRACE_S)


def _worker_config(settings: Settings, device: str, store: StoreIdentity) -> worker_pb2.WorkerConfig:
    return worker_pb2.WorkerConfig(
        device=device,
        store_path=str(settings.store),
        store_limit_bytes=settings.store_limit_bytes,
        durability=settings.durability.value,
        chunk_bytes=settings.chunk_bytes,
        library_roots=map(str, settings.library_roots),
        device_options=options_to_text(device, settings),
        log_level=settings.log_level,
        busy_poll_s=settings.busy_poll_s if _has_cores(CORES_FOR_ONE) else 0.0,
        busy_poll_beside_others=_has_cores(CORES_FOR_TWO),
        concurrency=settings.concurrency if kind_of(device).runs_aside else 1,
        device_memory_bytes=settings.device_memory_bytes,
        allow_host_wrappers=settings.allow_host_wrappers,
        max_compile_s=settings.max_compile_s,
        max_compile_memory_bytes=settings.max_compile_memory_bytes,
        code_cache_path="" if settings.code_cache is None else str(settings.code_cache),
        store=worker_pb2.StoreIdentity(
            store_id=store.store_id,
            files=[
                worker_pb2.FileIdentity(name=name, device=device_number, inode=inode)
                for name, (device_number, inode) in store.files.items()
            ],
        ),
    )


def _has_cores(cores: int) -> bool:
    return len(os.sched_getaffinity(0)) >= cores


def _locked(path: Path) -> ExitStack:
    """Hold the lock of a store's directory: two daemons would each sweep, register and supervise. Raises ``StoreInUse``."""
    stack = ExitStack()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, descriptor)
    make_private(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stack.close()
        raise StoreInUse(f"{path.parent}: another daemon uses this store") from None
    return stack
