"""The one thread of a process that writes to LMDB."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import lmdb

from kaas_core.errors import InternalError, KaasError, StoreFullError
from kaasd.store.base import Entry
from kaasd.store.changes import FREED_AT_ONCE, Changes, max_inline_bytes
from kaasd.store.environment import Environment
from kaasd.store.jobs import Commit, Job
from kaasd.store.lmdb_errors import translate
from kaasd.store.pieces import Pieces
from kaasd.store.records import NOBODY, Extent
from kaasd.store.sweep import sweep

T = TypeVar("T")
_log = logging.getLogger(__name__)

Task = Iterator[None]
"""Work in steps, each at most one short transaction; it raises nothing."""

_MIN_CHUNK_BYTES = 4096 - 16
"""With LMDB's header it fills one page, and so fits wherever one is free."""
_HELD_POLL_S = 0.002


class Writer:
    """Commits jobs, all that wait in one transaction, and between them does a step of what takes longer."""

    def __init__(self, environment: Environment, *, chunk_bytes: int, held_timeout_s: float, sweep_interval_s: float) -> None:
        self._environment = environment
        self._chunk_bytes = chunk_bytes
        self._held_timeout_s = held_timeout_s
        self._sweep_interval_s = sweep_interval_s
        self._wake = threading.Condition()
        self._jobs: deque[Job[Any]] = deque()
        self._tasks: deque[Task] = deque([self._sweep(Future())])
        self._dropped: deque[Extent] = deque()
        self._garbage_left = False
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job[T]) -> Future[T]:
        """Queue a job. Its future fails with ``InternalError`` after ``close``."""
        if not self._queue(lambda: self._jobs.append(job)):
            job.future.set_exception(self._closed_error())
        return job.future

    def submit_ahead(self, job: Commit) -> Future[dict[str, Entry]]:
        """Queue a commit whose values are too much for one transaction: their chunks first, each in one of its own."""
        if not self._queue(lambda: self._tasks.append(self._write_ahead(job))):
            job.future.set_exception(self._closed_error())
        return job.future

    def write_loose(self, pieces: Pieces) -> list[Extent]:
        """Write at most a chunk that no key points at yet, and wait for it. Raises ``StoreFullError``."""
        future: Future[list[Extent]] = Future()

        def task() -> Task:
            try:
                future.set_result(self._write_chunk(pieces))
            except Exception as error:
                future.set_exception(self._seen(error))
            yield

        if not self._queue(lambda: self._tasks.append(task())):
            raise self._closed_error()
        return future.result()

    def drop_loose(self, extents: Sequence[Extent]) -> None:
        """Free chunks that no key will point at, soon. After ``close`` that has been done."""
        if extents:
            self._queue(lambda: self._dropped.extend(extents))

    def sweep(self) -> Future[int]:
        """Free chunks whose process is gone, soon; the future has their number."""
        future: Future[int] = Future()
        if not self._queue(lambda: self._tasks.append(self._sweep(future))):
            future.set_exception(self._closed_error())
        return future

    def close(self) -> None:
        """Finish all that is queued, drop what is staged, and end the thread. Idempotent."""
        self._environment.check_process()
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()

    def run(self, work: Callable[[Changes], T]) -> T:
        """Do ``work`` in a transaction of its own; where LMDB's map is full, make room and repeat it. Raises ``KaasError``.

        Only for the writer's thread.
        """
        chunk_bytes, made_room = self._chunk_bytes, False
        while True:
            try:
                with self._environment.write() as txn:
                    changes = Changes(self._environment, txn, chunk_bytes)
                    result = work(changes)
                    changes.finish()
                self._garbage_left |= changes.left_garbage
                return result
            except StoreFullError:
                if not self._free_all():
                    raise
            except lmdb.MapFullError as error:
                if not made_room:
                    self._make_room()
                    made_room = True
                elif chunk_bytes > _MIN_CHUNK_BYTES:
                    # Enough pages may be free, but not as many in a row.
                    chunk_bytes = max(chunk_bytes // 4, _MIN_CHUNK_BYTES)
                else:
                    raise self._seen(error) from error
            except lmdb.Error as error:
                raise self._seen(error) from error

    # The thread

    def _loop(self) -> None:
        sweep_at = time.monotonic() + self._sweep_interval_s
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._has_work() or self._closing, max(sweep_at - time.monotonic(), 0.0))
                if self._closing and not self._has_work():
                    break
                jobs = self._take()
                task = self._tasks.popleft() if self._tasks else None
            if jobs:
                self._commit(jobs)
            if task is not None and next(task, self) is None:
                self._tasks.append(task)
            self._free_some()
            if time.monotonic() >= sweep_at:
                sweep_at = time.monotonic() + self._sweep_interval_s
                self._tasks.append(self._sweep(Future()))
        for _ in self._sweep(Future(), own=True):
            pass

    def _has_work(self) -> bool:
        return bool(self._jobs or self._tasks or self._dropped or self._garbage_left)

    def _take(self) -> list[Job[Any]]:
        """Return the jobs for one transaction: all that wait, up to a chunk's worth of bytes."""
        jobs: list[Job[Any]] = []
        size = 0
        while self._jobs and (not jobs or size + self._jobs[0].size_bytes <= self._chunk_bytes):
            job = self._jobs.popleft()
            if job.future.running() or job.future.set_running_or_notify_cancel():
                jobs.append(job)
                size += job.size_bytes
            else:
                self.drop_loose(job.loose)
        return jobs

    def _commit(self, jobs: Sequence[Job[Any]]) -> None:
        """Commit ``jobs`` in one transaction, less those whose check fails; where that fails, each in one of its own."""
        done, failed = [], []
        try:
            with self._environment.write() as txn:
                changes = Changes(self._environment, txn, self._chunk_bytes)
                for job in jobs:
                    try:
                        job.check(changes)
                    except KaasError as error:
                        failed.append((job, error))
                    else:
                        done.append((job, job.apply(changes)))
                if done:
                    changes.finish()
        except Exception:
            for job in jobs:
                self._commit_alone(job)
            return
        self._garbage_left |= changes.left_garbage
        for job, result in done:
            job.future.set_result(result)
        for job, refusal in failed:
            if isinstance(refusal, StoreFullError):
                self._commit_alone(job)
            else:
                self._fail(job, refusal)

    def _commit_alone(self, job: Job[Any]) -> None:
        def work(changes: Changes) -> object:
            job.check(changes)
            return job.apply(changes)

        try:
            result = self.run(work)
        except Exception as error:
            self._fail(job, error)
        else:
            job.future.set_result(result)

    def _fail(self, job: Job[Any], error: Exception) -> None:
        self.drop_loose(job.loose)
        job.future.set_exception(self._seen(error))

    def _free_some(self) -> int:
        """Free some of the chunks that uploads and overwritten values have left; return how many."""
        try:
            if self._dropped:
                batch = [self._dropped.popleft() for _ in range(min(len(self._dropped), FREED_AT_ONCE))]
                self.run(lambda changes: changes.drop_loose(batch))
                return len(batch)
            if self._garbage_left:
                freed = self.run(lambda changes: changes.free_loose(NOBODY))
                self._garbage_left = freed > 0
                return freed
        except Exception:
            # They stay loose, and are swept later: those of this process when it is gone.
            _log.warning("cannot free chunks in %s", self._environment.path, exc_info=True)
            self._garbage_left = False
        return 0

    def _free_all(self) -> bool:
        """Free all such chunks; return whether there were any."""
        freed = 0
        while count := self._free_some():
            freed += count
        return freed > 0

    def _make_room(self) -> None:
        """Let pages that were freed become free: two transactions later, and when no snapshot of before is open any more."""
        deadline = time.monotonic() + self._held_timeout_s
        while True:
            try:
                with self._environment.write() as txn:
                    Changes(self._environment, txn, self._chunk_bytes).finish()
            except lmdb.MapFullError:
                pass
            if not self._environment.is_held() or time.monotonic() > deadline:
                return
            time.sleep(_HELD_POLL_S)

    # Tasks

    def _write_chunk(self, pieces: Pieces) -> list[Extent]:
        def work(changes: Changes) -> list[Extent]:
            changes.check_room(pieces.size_bytes)
            return changes.put_loose(pieces)

        return self.run(work)

    def _write_ahead(self, job: Commit) -> Task:
        if not job.future.set_running_or_notify_cancel():
            self.drop_loose(job.loose)
            return
        try:
            for change in job.changes:
                if change.pieces.size_bytes <= max_inline_bytes(self._chunk_bytes):
                    continue
                pieces, change.pieces = change.pieces, Pieces()
                for part in pieces.cut(self._chunk_bytes):
                    change.extents += self._write_chunk(part)
                    yield
        except Exception as error:
            self._fail(job, error)
        else:
            self._jobs.append(job)

    def _sweep(self, future: Future[int], *, own: bool = False) -> Task:
        freed = 0
        try:
            self._environment.lmdb.reader_check()
            while count := self._free_some():
                freed += count
                yield
            for count in sweep(self._environment, self.run, own=own):
                freed += count
                yield
        except Exception as error:
            future.set_exception(self._seen(error))
        else:
            future.set_result(freed)

    # Errors and the queue

    def _seen(self, error: Exception) -> KaasError:
        """Return ``error`` as a caller should see it."""
        if isinstance(error, KaasError):
            return error
        if isinstance(error, lmdb.Error):
            return translate(error, self._environment.path)
        seen = InternalError(f"{self._environment.path}: {type(error).__name__}: {error}")
        seen.__cause__ = error
        return seen

    def _closed_error(self) -> KaasError:
        return InternalError(f"{self._environment.path} is closed")

    def _queue(self, add: Callable[[], None]) -> bool:
        """Queue something, unless this is closed; the writer's own thread may do so up to its end."""
        self._environment.check_process()
        with self._wake:
            if self._closing and threading.current_thread() is not self._thread:
                return False
            add()
            self._wake.notify_all()
        return True
