"""The one thread of a process that writes to LMDB."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

import lmdb

from kaas_core.errors import InternalError, KaasError, StoreFullError
from kaasd.store.base import Entry, Namespace
from kaasd.store.compaction import give_back
from kaasd.store.environment import Environment, is_out_of_room, translate
from kaasd.store.maintenance import reuse_freed_pages, sweep
from kaasd.store.records import NOBODY, Extent, Pieces
from kaasd.store.write_transaction import FREED_AT_ONCE, PendingCommit, PendingWrite, WriteTransaction, max_inline_bytes

T = TypeVar("T")
_log = logging.getLogger(__name__)

_MIN_CHUNK_BYTES = 4096 - 16
"""With LMDB's header it fills one page, and so fits wherever one is free."""


class SteppedTask(NamedTuple):
    """What takes several transactions, each of them short."""

    future: Future[Any]
    steps: Iterator[None]
    """They raise nothing, and complete the future."""


class Writer:
    """Commits writes, all that wait in one transaction, and between them does a step of what takes longer."""

    def __init__(self, environment: Environment, *, chunk_bytes: int, held_timeout_s: float, sweep_interval_s: float) -> None:
        self._environment = environment
        self._chunk_bytes = chunk_bytes
        self._held_timeout_s = held_timeout_s
        self._sweep_interval_s = sweep_interval_s
        self._wake = threading.Condition()
        self._waiting: deque[PendingWrite[Any]] = deque()
        self._taken: list[PendingWrite[Any]] = []
        """What the transaction under way is for."""
        self._tasks: deque[SteppedTask] = deque()
        self._add_sweep()
        self._dropped: deque[Extent] = deque()
        self._not_dropped: list[Extent] = []
        """What could not be freed; the next sweep tries again."""
        self._garbage_left = False
        self._is_dropping = False
        """Compiled code, to make room."""
        self._closing = False
        self._abandoned = False
        self._failure: BaseException | None = None
        """What ended the thread, where that was not ``close``."""
        self._thread = threading.Thread(target=self._run_thread, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, pending: PendingWrite[T]) -> Future[T]:
        """Queue a write. Its future fails with ``InternalError`` after ``close``, and where the thread has failed."""
        if not self._queue(lambda: self._waiting.append(pending)):
            pending.future.set_exception(self._ended_error())
        return pending.future

    def submit_ahead(self, pending: PendingCommit) -> Future[dict[str, Entry]]:
        """Queue a commit whose values are too much for one transaction: their chunks first, each in one of its own."""
        task = SteppedTask(pending.future, self._write_ahead(pending))
        if not self._queue(lambda: self._tasks.append(task)):
            pending.future.set_exception(self._ended_error())
        return pending.future

    def write_loose(self, pieces: Pieces) -> list[Extent]:
        """Write at most a chunk that no key points at yet, and wait for it. Raises ``StoreFullError``."""
        future: Future[list[Extent]] = Future()

        def steps() -> Iterator[None]:
            try:
                future.set_result(self._write_chunk(pieces))
            except Exception as error:
                future.set_exception(translate(error, self._environment.path))
            yield

        if not self._queue(lambda: self._tasks.append(SteppedTask(future, steps()))):
            raise self._ended_error()
        return future.result()

    def drop_loose(self, extents: Sequence[Extent]) -> None:
        """Free chunks that no key will point at, soon. After ``close`` that has been done."""
        if extents:
            self._queue(lambda: self._dropped.extend(extents))

    def sweep(self) -> Future[int]:
        """Free chunks whose process is gone, soon; the future has their number."""
        future: Future[int] = Future()
        if not self._queue(lambda: self._add_sweep(future)):
            future.set_exception(self._ended_error())
        return future

    def work_off(self, steps: Iterator[T]) -> Future[T]:
        """Take the steps of something that takes many, each short; the future has what the last one yields."""
        future: Future[T] = Future()
        if not self._queue(lambda: self._tasks.append(SteppedTask(future, self._work_off(future, steps)))):
            future.set_exception(self._ended_error())
        return future

    def compact(self, orphans: Sequence[int], is_stopped: Callable[[], bool]) -> Future[bool]:
        """Free the chunks of these ids, and give the disk back what is free.

        The future has whether the file system takes that from within a file.
        """
        future: Future[bool] = Future()
        if not self._queue(lambda: self._tasks.append(SteppedTask(future, self._compact(future, orphans, is_stopped)))):
            future.set_exception(self._ended_error())
        return future

    def abandon(self) -> None:
        """Have ``close`` leave what is staged to the next process, and so write nothing: the file is damaged or gone."""
        self._abandoned = True

    def close(self) -> None:
        """Finish all that is queued, drop what is staged, and end the thread. Idempotent. Returns also where it has failed."""
        self._environment.check_process()
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()

    def run(self, work: Callable[[WriteTransaction], T], wait_until: float = math.inf) -> T:
        """Do ``work`` in a transaction of its own; where no page is found, make room and repeat it. Raises ``KaasError``.

        It waits for snapshots that hold pages, until ``wait_until`` of the monotonic clock at most. Only for the writer's thread.
        """
        chunk_bytes, made_room = self._chunk_bytes, False
        while True:
            try:
                with self._environment.write() as txn:
                    transaction = WriteTransaction(self._environment, txn, chunk_bytes)
                    result = work(transaction)
                    transaction.finish()
                self._garbage_left |= transaction.left_garbage
                return result
            except StoreFullError:
                if not (self._free_all() or self._drop_compiled()):
                    raise
            except lmdb.Error as error:
                if not is_out_of_room(error, self._environment.path):
                    raise translate(error, self._environment.path) from error
                if not made_room:
                    timeout_s = min(self._held_timeout_s, max(wait_until - time.monotonic(), 0.0))
                    reuse_freed_pages(self._environment, timeout_s)
                    made_room = True
                elif chunk_bytes > _MIN_CHUNK_BYTES:
                    # Enough pages may be free, but not as many in a row.
                    chunk_bytes = max(chunk_bytes // 4, _MIN_CHUNK_BYTES)
                elif not self._drop_compiled():
                    raise translate(error, self._environment.path) from error

    # The thread

    def _run_thread(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # whatever it is, nobody may wait for this thread any more
            _log.critical("the thread that writes to %s has failed", self._environment.path, exc_info=True)
            self._fail_all(error)

    def _loop(self) -> None:
        sweep_at = time.monotonic() + self._sweep_interval_s
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._has_work() or self._closing, max(sweep_at - time.monotonic(), 0.0))
                if self._closing and not self._has_work():
                    break
                self._take()
            if self._taken:
                self._commit(self._taken)
                self._taken.clear()
            if self._tasks:
                task = self._tasks[0]
                is_over = next(task.steps, self) is self
                self._tasks.popleft()
                if not is_over:
                    self._tasks.append(task)
            self._free_some()
            if time.monotonic() >= sweep_at:
                sweep_at = time.monotonic() + self._sweep_interval_s
                self._add_sweep()
        if not self._abandoned:
            for _ in self._sweep(Future(), own=True):
                pass

    def _has_work(self) -> bool:
        return bool(self._waiting or self._tasks or self._dropped or self._garbage_left)

    def _take(self) -> None:
        """Take the writes for one transaction: all that wait, up to a chunk's worth of bytes."""
        size = 0
        while self._waiting and (not self._taken or size + self._waiting[0].size_bytes <= self._chunk_bytes):
            pending = self._waiting.popleft()
            if pending.future.running() or pending.future.set_running_or_notify_cancel():
                self._taken.append(pending)
                size += pending.size_bytes
            else:
                self.drop_loose(pending.loose)

    def _commit(self, group: Sequence[PendingWrite[Any]]) -> None:
        """Commit ``group`` in one transaction, less those whose check fails; where that fails, each in one of its own."""
        done, failed = [], []
        try:
            with self._environment.write() as txn:
                transaction = WriteTransaction(self._environment, txn, self._chunk_bytes)
                for pending in group:
                    try:
                        pending.check(transaction)
                    except KaasError as error:
                        failed.append((pending, error))
                    else:
                        done.append((pending, pending.apply(transaction)))
                if done:
                    transaction.finish()
        except Exception:
            # They wait for snapshots once, and not each behind the others.
            wait_until = time.monotonic() + self._held_timeout_s
            for pending in group:
                self._commit_alone(pending, wait_until)
            return
        self._garbage_left |= transaction.left_garbage
        for pending, result in done:
            pending.future.set_result(result)
        for pending, refusal in failed:
            if isinstance(refusal, StoreFullError):
                self._commit_alone(pending)
            else:
                self._fail(pending, refusal)

    def _commit_alone(self, pending: PendingWrite[Any], wait_until: float = math.inf) -> None:
        def work(transaction: WriteTransaction) -> object:
            pending.check(transaction)
            return pending.apply(transaction)

        try:
            result = self.run(work, wait_until)
        except Exception as error:
            self._fail(pending, error)
        else:
            pending.future.set_result(result)

    def _fail(self, pending: PendingWrite[Any], error: Exception) -> None:
        self.drop_loose(pending.loose)
        pending.future.set_exception(translate(error, self._environment.path))

    def _fail_all(self, error: BaseException) -> None:
        """Fail what waits, and from now on what is asked for."""
        with self._wake:
            self._failure = error
            futures = [pending.future for pending in (*self._taken, *self._waiting)]
            futures += [task.future for task in self._tasks]
            self._taken.clear()
            self._waiting.clear()
            self._tasks.clear()
        for future in futures:
            # One may be done, or cancelled; and a callback of one may be what has failed.
            with suppress(BaseException):
                future.set_exception(self._ended_error())

    def _free_some(self) -> int:
        """Free some of the chunks that uploads and overwritten values have left; return how many."""
        batch: list[Extent] = []
        try:
            if self._dropped:
                batch = [self._dropped.popleft() for _ in range(min(len(self._dropped), FREED_AT_ONCE))]
                self.run(lambda transaction: transaction.drop_loose(batch))
                return len(batch)
            if self._garbage_left:
                freed = self.run(lambda transaction: transaction.free_loose(NOBODY))
                self._garbage_left = freed > 0
                return freed
        except Exception:
            # They stay loose until the next sweep, or that of another process when this one is gone.
            _log.warning("cannot free chunks in %s", self._environment.path, exc_info=True)
            self._not_dropped += batch
            self._garbage_left = False
        return 0

    def _free_all(self) -> bool:
        """Free all such chunks; return whether there were any."""
        freed = 0
        while count := self._free_some():
            freed += count
        return freed > 0

    def _drop_compiled(self) -> bool:
        """Make room by dropping some of the compiled code; return whether there was any."""
        environment = self._environment
        txn = environment.begin()
        try:
            is_there = txn.stat(environment.entries[Namespace.COMPILED])["entries"] > 0
        finally:
            environment.end(txn)
        if not is_there or self._is_dropping:
            return False
        self._is_dropping = True
        try:
            return self.run(WriteTransaction.drop_compiled) > 0
        except StoreFullError:
            return False  # not even for that
        finally:
            self._is_dropping = False

    # Tasks

    def _write_chunk(self, pieces: Pieces) -> list[Extent]:
        def work(transaction: WriteTransaction) -> list[Extent]:
            transaction.check_room(pieces.size_bytes)
            return transaction.put_loose(pieces)

        return self.run(work)

    def _write_ahead(self, pending: PendingCommit) -> Iterator[None]:
        if not pending.future.set_running_or_notify_cancel():
            self.drop_loose(pending.loose)
            return
        try:
            for change in pending.changes:
                if change.pieces.size_bytes <= max_inline_bytes(self._chunk_bytes):
                    continue
                pieces, change.pieces = change.pieces, Pieces()
                for part in pieces.cut(self._chunk_bytes):
                    change.extents += self._write_chunk(part)
                    yield
        except Exception as error:
            self._fail(pending, error)
        else:
            self._waiting.append(pending)

    def _add_sweep(self, future: Future[int] | None = None) -> None:
        future = future or Future()
        self._tasks.append(SteppedTask(future, self._sweep(future)))

    def _sweep(self, future: Future[int], *, own: bool = False) -> Iterator[None]:
        if not future.set_running_or_notify_cancel():
            return
        freed = 0
        self._dropped.extend(self._not_dropped)
        self._not_dropped.clear()
        try:
            self._environment.lmdb.reader_check()
            while count := self._free_some():
                freed += count
                yield
            for count in sweep(self._environment, self.run, own=own):
                freed += count
                yield
        except Exception as error:
            future.set_exception(translate(error, self._environment.path))
        else:
            future.set_result(freed)

    def _work_off(self, future: Future[T], steps: Iterator[T]) -> Iterator[None]:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = next(steps)
            yield
            while not self._closing and (later := next(steps, None)) is not None:
                result = later
                yield
        except Exception as error:
            future.set_exception(translate(error, self._environment.path))
        else:
            future.set_result(result)

    def _compact(self, future: Future[bool], orphans: Sequence[int], is_stopped: Callable[[], bool]) -> Iterator[None]:
        if not future.set_running_or_notify_cancel():
            return
        try:
            yield from self._sweep(Future())
            for start in range(0, len(orphans), FREED_AT_ONCE):
                self.run(partial(WriteTransaction.free, chunk_ids=orphans[start : start + FREED_AT_ONCE]))
                yield
            self.run(lambda _: None)  # what the last transaction has freed LMDB uses after one more
            can_punch = yield from give_back(self._environment, is_stopped)
        except Exception as error:
            future.set_exception(translate(error, self._environment.path))
        else:
            future.set_result(can_punch)

    # The queue

    def _ended_error(self) -> KaasError:
        """Return why nothing is written any more."""
        path, failure = self._environment.path, self._failure
        if failure is None:
            return InternalError(f"{path} is closed")
        seen = InternalError(
            f"{path}: nothing can be written any more, as its writer failed: {type(failure).__name__}: {failure}"
        )
        seen.__cause__ = failure
        return seen

    def _queue(self, add: Callable[[], None]) -> bool:
        """Queue something, unless this is closed or has failed; the writer's own thread may do so up to its end."""
        self._environment.check_process()
        with self._wake:
            if (self._closing or self._failure is not None) and threading.current_thread() is not self._thread:
                return False
            add()
            self._wake.notify_all()
        return True
