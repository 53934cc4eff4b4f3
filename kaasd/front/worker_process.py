"""The process of one worker: what starts it, starts another in its place, and waits for its end."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from kaas.worker.v1 import worker_pb2
from kaasd.ipc.channel import Progress, Stage
from kaasd.ipc.front_channel import FrontChannel

COMMAND = (sys.executable, "-m", "kaasd.worker.main")
WANTED_DELAY_S = 3.0
"""The longest that a call waits for a start which is not due yet."""
HEARTBEAT_S = 1.0
"""Between two questions to a worker whether it still runs. A thread of its own answers, whatever the device does."""
MOST_UNANSWERED = 10
"""In a row: a worker that answers no more is replaced. On a busy machine one may be late by a second or two."""
MOST_UNANSWERED_AT_START = 60
"""Until it has answered first, when it has loaded its code."""
MOST_TO_START = 120
"""Answered or not, until its device is open."""
SPARE_PLACES = 128
"""For calls that a worker has begun beside the requests in its slots: those that compile, and those of groups that reserve."""
EXIT_GRACE_S = 5.0
"""From the closing of the channels to the killing of a worker that does not exit."""

_log = logging.getLogger(__name__)


@dataclass
class RestartPolicy:
    """How long to wait before a new worker: not at all after one that served, ever longer after ones that never did."""

    failures: int = 0
    """Workers in a row that ended without having become ready."""
    first_delay_s: float = 0.25
    longest_delay_s: float = 30.0

    def ready(self) -> None:
        """A worker has started well."""
        self.failures = 0

    def lost(self, was_ready: bool) -> float:
        """Return the seconds to wait after a worker has ended, or could not even be started."""
        if was_ready:
            return 0.0
        self.failures += 1
        doublings = min(self.failures - 1, math.ceil(math.log2(self.longest_delay_s / self.first_delay_s)))
        return min(self.longest_delay_s, math.ldexp(self.first_delay_s, doublings))


@dataclass
class Heartbeat:
    """Whether a process still answers."""

    unanswered: int = 0
    """Questions in a row."""
    to_start: int = 0
    """Questions until it was ready."""
    has_answered: bool = False
    is_ready: bool = False
    """Its device is open."""

    def ask(self) -> bool:
        """Return whether to ask on, which counts as one more question; not where too many have gone unanswered.

        Nor where it has answered as often as a start may take, and is not ready.
        """
        self.unanswered += 1
        self.to_start += not self.is_ready
        most = MOST_UNANSWERED if self.has_answered else MOST_UNANSWERED_AT_START
        return self.unanswered <= most and (self.is_ready or self.to_start <= MOST_TO_START)

    def answered(self) -> None:
        """It runs."""
        self.unanswered, self.has_answered = 0, True


def ending(process: subprocess.Popen[bytes] | None) -> str:
    """Return how a process has ended, in words."""
    status = None if process is None else process.returncode
    if status is None:
        return "it never ran"
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:  # a real-time one
        return f"signal {-status}"


class WorkerProcess:
    """One process after another, each started with exec: nothing of the front's gRPC or LMDB may cross a fork."""

    def __init__(
        self,
        config: worker_pb2.WorkerConfig,
        on_started: Callable[[], object],
        on_message: Callable[[worker_pb2.FromWorker], object],
        on_lost: Callable[[], object],
    ) -> None:
        """As ``hand_over``."""
        self._config = config
        self.calls: FrontChannel | None = None
        """The channel to the latest process."""
        self.hand_over(on_started, on_message, on_lost)
        self._process: subprocess.Popen[bytes] | None = None
        self.policy = RestartPolicy()
        self.cancellations: FrontChannel | None = None
        """The channel on which it hears of calls that are to end early, while it is busy with them."""
        self._watch: asyncio.Task[None] | None = None
        self._progress: Progress | None = None
        self._heartbeat = Heartbeat()
        self._at_once = asyncio.Event()
        """Set where the next start is not to wait."""
        self.restarts = 0
        """How often a process took the place of another."""

    def hand_over(
        self,
        on_started: Callable[[], object],
        on_message: Callable[[worker_pb2.FromWorker], object],
        on_lost: Callable[[], object],
    ) -> None:
        """``on_started`` is called for each process before anything is sent to it, the others as ``FrontChannel``'s."""
        self._on_started = on_started
        self._on_message = on_message
        self._on_lost = on_lost
        if self.calls is not None:
            self.calls.on_message, self.calls.on_lost = on_message, on_lost

    @property
    def pid(self) -> int:
        """The latest process's, 0 before the first."""
        return 0 if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the latest process has not ended yet."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_silent(self) -> bool:
        """Whether the latest process has let a question pass without an answer, and so may stand still."""
        return self._heartbeat.unanswered > 1

    def ready(self) -> None:
        """The latest process has opened its device."""
        self.policy.ready()
        self._heartbeat.is_ready = True

    async def start(self) -> None:
        """Start a process and send it its settings. Raises ``OSError`` where the machine has no room for one."""
        with ExitStack() as on_failure:
            pairs = [socket.socketpair() for _ in range(2)]
            for ours, _ in pairs:
                on_failure.callback(ours.close)
            shared = Progress.create(self._config.concurrency + SPARE_PLACES)
            with pairs[0][1] as calls, pairs[1][1] as cancellations, ExitStack() as at_end:
                at_end.callback(os.close, shared)
                descriptors = (calls.fileno(), cancellations.fileno(), shared)
                process = subprocess.Popen([*COMMAND, *map(str, descriptors)], pass_fds=descriptors, stdin=subprocess.DEVNULL)
                progress = Progress(shared)
            on_failure.pop_all()
        if self._progress is not None:
            self._progress.close()
        self._progress = progress
        self.restarts += self._process is not None
        self._process = process
        self._at_once.clear()
        self._on_started()
        self._heartbeat = heartbeat = Heartbeat()
        try:
            self.cancellations = await FrontChannel.open(pairs[1][0], lambda _: heartbeat.answered())
            # The last thing waited for: that a process is lost is heard of only when it has started.
            self.calls = await FrontChannel.open(pairs[0][0], self._on_message, self._on_lost)
        except BaseException:  # Cancelled: without this it would wait for its settings until it is killed.
            for ours, _ in pairs:
                with suppress(OSError):
                    ours.shutdown(socket.SHUT_RDWR)
                ours.close()
            raise
        self.calls.send(worker_pb2.ToWorker(configure=self._config))
        self._end_watch()
        self._watch = asyncio.create_task(self._ask(heartbeat, process))

    async def restart(self, was_ready: bool, check: Callable[[], object], is_wanted: Callable[[], bool]) -> None:
        """Start a process in place of one that ends, when ``policy`` allows or a call wants it; again where that fails.

        ``was_ready``: the one that ends had served. ``check`` is called before each start; what it raises ends this. Returns when
        one has started and the other has ended.
        """
        self._end_watch()
        delay_s = self.policy.lost(was_ready)
        # On an H200 it takes 0.3 s to take down a context, and the next process as long to load its code.
        ended = asyncio.create_task(self._see_end(self._process, delay_s))
        try:
            await self._start_again(delay_s, check, is_wanted)
        finally:
            await ended

    async def _see_end(self, process: subprocess.Popen[bytes] | None, delay_s: float) -> None:
        await self._reap(process, 0.0)
        _log.warning(
            "worker of %s (pid %d) ended (%s); a new one starts %s",
            self._config.device,
            0 if process is None else process.pid,
            ending(process),
            f"in at most {delay_s:.2f} s" if delay_s else "at once",
        )

    async def _start_again(self, delay_s: float, check: Callable[[], object], is_wanted: Callable[[], bool]) -> None:
        while True:
            await self._back_off(delay_s, is_wanted)
            check()
            try:
                await self.start()
            except OSError as error:
                delay_s = self.policy.lost(was_ready=False)
                _log.error("worker of %s cannot be started, again in at most %.2f s: %s", self._config.device, delay_s, error)
            else:
                return

    def start_at_once(self) -> None:
        """Let the next start, or one that is put off now, wait no longer."""
        self._at_once.set()

    def begun(self) -> dict[int, Stage]:
        """Return the calls that the latest process has begun and not answered, or had when it ended."""
        return {} if self._progress is None else self._progress.begun()

    def forget_library(self, library_id: str) -> None:
        """Tell it that an uploaded library was deleted. One that starts later knows nothing of it."""
        if self.calls is not None:
            self.calls.send(worker_pb2.ToWorker(forget_library=worker_pb2.ForgetLibrary(library=library_id)))

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        """Close the channels, on which an idle worker exits, and wait for its end; kill it where it does not. Idempotent."""
        self._end_watch()
        for channel in (self.calls, self.cancellations):
            if channel is not None:
                channel.close()
        await self._reap(self._process, EXIT_GRACE_S)
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    async def _back_off(self, delay_s: float, is_wanted: Callable[[], bool]) -> None:
        """Sleep for ``delay_s``, or where a process is wanted before, for up to ``WANTED_DELAY_S`` of it."""
        while delay_s > 0:
            step_s = min(delay_s, WANTED_DELAY_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(step_s):
                    await self._at_once.wait()
            delay_s -= step_s
            if self._at_once.is_set() or is_wanted():
                return

    async def _ask(self, heartbeat: Heartbeat, process: subprocess.Popen[bytes]) -> None:
        """Ask a process again and again whether it still runs; kill it when it does not say so any more."""
        while heartbeat.ask():
            assert self.cancellations is not None
            self.cancellations.send(worker_pb2.ToWorker(ping=worker_pb2.Ping()))
            await asyncio.sleep(HEARTBEAT_S)
        what = "does not answer any more" if heartbeat.is_ready or heartbeat.unanswered > 1 else "does not open its device"
        _log.error("worker of %s (pid %d) %s, and is killed", self._config.device, process.pid, what)
        process.kill()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    async def _reap(self, process: subprocess.Popen[bytes] | None, grace_s: float) -> None:
        """Wait for the end of a process, and kill it when it takes longer than ``grace_s``."""
        if process is None:
            return

        def wait() -> None:
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        await asyncio.to_thread(wait)
