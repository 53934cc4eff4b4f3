"""The compiler of one worker: a process that is started when something is to be compiled, and a thread that waits for it.

What is asked for twice is compiled once, and goes on being compiled when nobody waits for it any more.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from hashlib import sha256
from time import monotonic

from cachetools import LRUCache

from kaas.worker.v1 import compiler_pb2
from kaas_core.errors import InternalError, InvalidLibraryError, KaasError, WorkerRestartingError
from kaasd.compiler.cache import CodeCache
from kaasd.ipc.channel import BlockingChannel
from kaasd.libraries.registry import ResolvedLibrary

COMMAND = (sys.executable, "-m", "kaasd.compiler.main")
MAX_TIME_S = 300.0
MAX_MEMORY_BYTES = 4 << 30
IDLE_S = 60.0
"""How long the process waits for more to do. To start it takes half a second, and idle it has some 100 MB."""
START_S = 60.0
"""Longest that its start takes, before the time of what it compiles begins."""
MOST_STARTS = 2
"""Processes that one thing to compile may cost, where it is not its limits that end them."""
CLAIM_S = 0.05
"""Between two looks whether another process still compiles the same."""
MOST_ABANDONED = 16
"""That wait to be compiled though nobody waits for them; of more the oldest are dropped."""
REMEMBERED_BYTES = 32 << 20
"""Of what was made: for who comes next, where the store has no room for it."""

_log = logging.getLogger(__name__)


class Compilation:
    """Something to be compiled, for all who wait for it."""

    def __init__(self, compiler: Compiler, key: str, library: ResolvedLibrary, kernel: str) -> None:
        self.key, self.library, self.kernel = key, library, kernel
        self.waiting = 0
        """For it: who has not called ``release``."""
        self.future: Future[bytes] = Future()
        self._compiler = compiler

    def done(self) -> bool:
        return self.future.done()

    def wait(self) -> None:
        """Return when it is compiled, or cannot be."""
        wait([self.future])

    def result(self) -> bytes:
        """Return what was made. Raises ``KaasError``, each time another one."""
        error = self.future.exception()
        if isinstance(error, KaasError):
            raise type(error)(error.message, error.metadata)
        return self.future.result()

    def release(self) -> None:
        """One who called ``Compiler.start`` waits no more, and needs the result no more."""
        self._compiler.release(self)


class Compiler:
    """Used by one thread, that of the worker's device; what it starts is compiled by its own."""

    def __init__(
        self,
        kind: str,
        target: str,
        *,
        cache: CodeCache | None = None,
        max_time_s: float = MAX_TIME_S,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
        log_level: str = "WARNING",
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        """For devices of ``kind`` and the ``target`` that one says. No process takes longer for one thing, or more memory.

        ``on_end`` is called from another thread when something is compiled, or cannot be.
        """
        self._kind, self._target = kind, target
        self._cache = cache
        self._max_time_s, self._max_memory_bytes = max_time_s, max_memory_bytes
        self._log_level = log_level
        self._on_end = on_end
        self._known: dict[str, Compilation] = {}
        """What somebody waits for, and what is still to be compiled."""
        self._made: LRUCache[str, bytes] = LRUCache(REMEMBERED_BYTES, len)
        self._wake = threading.Condition()
        self._queue: deque[Compilation] = deque()
        self._closing = False
        self._process: _Process | None = None
        self._thread: threading.Thread | None = None

    def start(self, library: ResolvedLibrary, kernel: str = "") -> Compilation:
        """Have a kernel of a library compiled, or without one the library described; to be released when it is not needed."""
        key = self._key(library, kernel)
        with self._wake:
            compilation = self._known.get(key)
            if compilation is None:
                compilation = self._known[key] = Compilation(self, key, library, kernel)
                made = self._made.get(key)
                if made is None and self._cache is not None:
                    made = self._cache.get(key)
                if made is not None:
                    compilation.future.set_result(made)
                else:
                    self._enqueue(compilation)
            compilation.waiting += 1
            return compilation

    def result(self, library: ResolvedLibrary, kernel: str = "") -> bytes | None:
        """Return what was made, or None where nobody holds that. Raises ``KaasError``: why it cannot be made."""
        compilation = self._known.get(self._key(library, kernel))
        return compilation.result() if compilation is not None and compilation.done() else None

    def release(self, compilation: Compilation) -> None:
        """See ``Compilation.release``."""
        with self._wake:
            compilation.waiting -= 1
            self._forget(compilation)

    def close(self) -> None:
        """End the process; what is not compiled fails. Idempotent."""
        with self._wake:
            self._closing = True
            if self._process is not None:
                self._process.kill()
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _key(self, library: ResolvedLibrary, kernel: str) -> str:
        """Return what names the result: here, and in the store."""
        return sha256(f"{library.content_id}\0{self._target}\0{kernel}".encode()).hexdigest()

    def _forget(self, compilation: Compilation) -> None:
        if not compilation.waiting and compilation.done():
            self._known.pop(compilation.key, None)

    def _enqueue(self, compilation: Compilation) -> None:
        abandoned = [each for each in self._queue if not each.waiting]
        for each in abandoned[: max(0, len(abandoned) - MOST_ABANDONED + 1)]:
            self._queue.remove(each)
            del self._known[each.key]
        self._queue.append(compilation)
        if self._thread is None:
            # It lives as long as the worker: the process ends with the thread that has started it.
            self._thread = threading.Thread(target=self._run, name="compiler", daemon=True)
            self._thread.start()
        self._wake.notify_all()

    # The thread

    def _run(self) -> None:
        while (compilation := self._next()) is not None:
            try:
                content = self._made_by_another(compilation) or self._compile(compilation)
            except KaasError as error:
                self._end(compilation, error)
            except Exception as error:
                _log.exception("the compiler has failed")
                self._end(compilation, InternalError(f"the compiler cannot be used: {error}"))
            else:
                self._end(compilation, content)
        if self._process is not None:
            self._process.close()
        for compilation in list(self._queue):
            self._end(compilation, WorkerRestartingError("the worker is ending; nothing was changed"))

    def _next(self) -> Compilation | None:
        """Wait for something to compile; None at the end."""
        with self._wake:
            while not self._closing:
                if self._queue:
                    return self._queue.popleft()
                if not self._wake.wait(IDLE_S if self._process is not None else None) and self._process is not None:
                    self._process.close()
                    self._process = None
            return None

    def _end(self, compilation: Compilation, outcome: bytes | KaasError) -> None:
        if self._cache is not None:
            if isinstance(outcome, bytes):
                self._cache.put(compilation.key, outcome)
            else:
                self._cache.give_up(compilation.key)
        with self._wake:
            if isinstance(outcome, KaasError):
                compilation.future.set_exception(outcome)
            else:
                if len(outcome) <= REMEMBERED_BYTES:
                    self._made[compilation.key] = outcome
                compilation.future.set_result(outcome)
            self._forget(compilation)
        self._on_end()

    def _made_by_another(self, compilation: Compilation) -> bytes | None:
        """Where another process compiles the same, wait for that; return what it has made, if anything."""
        if self._cache is None:
            return None
        until = monotonic() + self._max_time_s
        while not self._cache.claim(compilation.key) and monotonic() < until:
            with self._wake:
                if self._closing:
                    break
                self._wake.wait(CLAIM_S)
        return self._cache.get(compilation.key)

    def _compile(self, compilation: Compilation) -> bytes:
        """Return what the process makes. Raises ``KaasError``."""
        what = f"kernel {compilation.kernel!r}" if compilation.kernel else "the library"
        wanted = compiler_pb2.Compile(
            kind=self._kind, target=self._target, image=compilation.library.data, kernel=compilation.kernel
        )
        for _ in range(MOST_STARTS):
            began = monotonic()
            process = self._running()
            answer = process.ask(wanted, self._max_time_s)
            outcome = None if answer is None else answer.WhichOneof("outcome")
            if self._closing:
                raise WorkerRestartingError("the worker is ending; nothing was changed")
            if outcome == "content":
                assert answer is not None
                _log.info("%s of %s: compiled in %.2f s", what, compilation.library.content_id, monotonic() - began)
                return answer.content
            if outcome == "unsupported":
                assert answer is not None
                raise InvalidLibraryError(answer.unsupported)
            self._stop(process)
            if outcome == "out_of_memory" and process.is_fresh:
                raise self._over_memory(what)
            if outcome == "failed":
                raise InternalError("a defect of kaasd; its log has the details")
            if process.ran_out_of_time:
                raise InvalidLibraryError(
                    f"{what} takes longer to compile than this server allows, {self._max_time_s:g} s (--max-compile-time)",
                    {"limit": "max_compile_time"},
                )
            _log.warning(
                "the compiler ended (%s) while it compiled %s of %s", process.ending, what, compilation.library.content_id
            )
        message = f"the compiler ended {MOST_STARTS} times ({process.ending}) while it compiled {what}"
        if process.ending in ("SIGABRT", "SIGSEGV"):  # as LLVM ends where it gets no memory
            message += f"; it may need more memory than {self._max_memory_bytes >> 20} MiB (--max-compile-memory)"
        raise InvalidLibraryError(message)

    def _over_memory(self, what: str) -> InvalidLibraryError:
        mebibytes = self._max_memory_bytes >> 20
        return InvalidLibraryError(
            f"{what} takes more memory to compile than this server allows, {mebibytes} MiB (--max-compile-memory)",
            {"limit": "max_compile_memory"},
        )

    def _running(self) -> _Process:
        """Return the process, and start one where none runs."""
        with self._wake:
            if self._closing:
                raise WorkerRestartingError("the worker is ending; nothing was changed")
            if self._process is None:
                self._process = _Process(self._max_memory_bytes, self._log_level)
            return self._process

    def _stop(self, process: _Process) -> None:
        process.close()
        with self._wake:
            self._process = None


class _Process:
    """One compiler process."""

    def __init__(self, max_memory_bytes: int, log_level: str) -> None:
        """Raises ``OSError`` where the machine has no room for one."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = map(str, (theirs.fileno(), os.getpid(), max_memory_bytes, log_level))
            try:
                self._process = subprocess.Popen([*COMMAND, *arguments], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            except BaseException:
                ours.close()
                raise
        self._socket = ours
        self._channel = BlockingChannel(ours, compiler_pb2.Compiled)
        self._asked = 0
        self.ran_out_of_time = False

    def ask(self, wanted: compiler_pb2.Compile, max_time_s: float) -> compiler_pb2.Compiled | None:
        """Have something compiled. None where the process has ended, or has taken longer: then it is of no more use."""
        if not self._asked and self._receive(max(START_S, max_time_s)) is None:
            return None
        self._asked += 1
        until = monotonic() + max_time_s
        self._socket.settimeout(max_time_s)
        try:
            self._channel.send(wanted)
        except TimeoutError:
            self.ran_out_of_time = True
            return None
        return self._receive(until - monotonic())

    def _receive(self, timeout_s: float) -> compiler_pb2.Compiled | None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        try:
            if poll.poll(max(0.0, timeout_s) * 1e3):
                self._socket.settimeout(START_S)  # for all of it, when it has begun
                return self._channel.receive()
        except TimeoutError:
            pass
        self.ran_out_of_time = True
        return None

    @property
    def is_fresh(self) -> bool:
        """Whether it has been asked for one thing at most, so that its memory holds nothing else."""
        return self._asked <= 1

    def kill(self) -> None:
        """End it. Idempotent."""
        self._process.kill()

    def close(self) -> None:
        """End it, and wait for that. Idempotent."""
        self._process.kill()
        self._process.wait()
        self._channel.close()

    @property
    def ending(self) -> str:
        """How it has ended, in words."""
        status = self._process.returncode
        return signal.Signals(-status).name if -status in set(signal.Signals) else f"exit status {status}"
