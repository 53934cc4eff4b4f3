"""Calls that have a ``request_id``: each has its effect once, however often it is sent.

What a request stored lies in the store with its reply, of the same transaction, so that any front and any worker finds it there.
What stored nothing can run again with no harm; its reply is kept in memory, as long as there is room. Here is also who waits for
whom. A call without an id comes by none of this.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from xxhash import xxh3_128

from kaas.v1 import executor_pb2
from kaas_core.errors import DeadlineExceededError, InvalidArgumentError, KaasError, KeyNotFoundError, QueueFullError
from kaasd.ipc.replies import MAX_REPLY_BYTES, ReplyKey, unpack_reply
from kaasd.store.base import Entry, KeyValueStore, Namespace

MAX_ID_BYTES = 128
MOST_KEPT = 100_000
"""Replies of one group in the store. The oldest beyond that go when so many more have come as ``SWEPT_BEHIND``."""
SWEPT_BEHIND = MOST_KEPT // 10
STORE_SHARE = 16
"""All replies take at most so small a part of the store's limit: they must not keep values out."""
SWEEP_INTERVAL_S = 60.0
"""At most; a tenth of the window where that is less. Replies are kept for so much longer."""
MEMORY_BYTES = 16 << 20
"""Of all replies that are kept in memory."""
KEPT_OVERHEAD_BYTES = 1024
"""What one takes in memory beside what its caller asked for."""

_LENGTH = struct.Struct("<Q")
_log = logging.getLogger(__name__)


def fingerprint(
    digest: bytes, keys: Mapping[str, str], inputs: Mapping[str, bytes], return_buffers: Iterable[str], device: str
) -> bytes:
    """Return what tells a call from one with other content: a request's digest, and what the call says beside it.

    It finds mistakes; who makes two calls of one fingerprint on purpose gets one's reply for the other. It is stored, and so must
    stay the same from version to version.
    """
    state = xxh3_128(digest)
    parts = [b"%d %d" % (len(keys), len(inputs)), device.encode()]
    for name in sorted(keys):
        parts += name.encode(), keys[name].encode()
    for name in sorted(inputs):
        parts += name.encode(), inputs[name]
    parts += (name.encode() for name in sorted(set(return_buffers)))
    for part in parts:
        state.update(_LENGTH.pack(len(part)))
        state.update(part)
    return state.digest()


@dataclass(frozen=True, slots=True)
class _Kept:
    """A reply in memory."""

    as_key: ReplyKey
    reply: executor_pb2.InvokeResponse
    size_bytes: int
    until: float


class RecentIds:
    """Which ids run, and the replies of those that have stored nothing. A state machine: the time in, decisions out, no I/O."""

    def __init__(self, window_s: float, memory_bytes: int = MEMORY_BYTES) -> None:
        self._window_s = window_s
        self._memory_bytes = memory_bytes
        self._running: dict[str, ReplyKey] = {}
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        """By age."""
        self.kept_bytes = 0

    def begin(self, as_key: ReplyKey, now: float) -> executor_pb2.InvokeResponse | bool:
        """A call has come. Return its reply, or whether it runs from now on; False where it is to wait for the one that runs.

        Raises ``RequestIdReusedError``.
        """
        if (running := self._running.get(as_key.key)) is not None:
            as_key.check(running.fingerprint)
            return False
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._forget_oldest()
        if (kept := self._kept.get(as_key.key)) is not None:
            as_key.check(kept.as_key.fingerprint)
            return kept.reply
        self._running[as_key.key] = as_key
        return True

    def end(self, as_key: ReplyKey, reply: executor_pb2.InvokeResponse | None, size_bytes: int, now: float) -> None:
        """A call that ran has ended, and ``reply`` is to be kept in memory, if there is one."""
        del self._running[as_key.key]
        if reply is None or size_bytes > self._memory_bytes:
            return
        while self.kept_bytes + size_bytes > self._memory_bytes:
            self._forget_oldest()
        self._kept[as_key.key] = _Kept(as_key, reply, size_bytes, now + self._window_s)
        self.kept_bytes += size_bytes

    def _forget_oldest(self) -> None:
        _, kept = self._kept.popitem(last=False)
        self.kept_bytes -= kept.size_bytes


@dataclass(frozen=True, slots=True)
class IdentifiedCall:
    """A call that has an id."""

    as_key: ReplyKey
    _ids: RequestIds

    def find(self) -> executor_pb2.InvokeResponse | None:
        """Return its reply, where the store has it. Raises ``RequestIdReusedError``, ``DataDamagedError``."""
        return self._ids.find(self.as_key)


class RequestIds:
    """All ids of one server. Used by one event loop."""

    def __init__(self, store: KeyValueStore, window_s: float, max_waiting_bytes: float) -> None:
        """``max_waiting_bytes`` is for the inputs of calls that wait for another one of the same id."""
        self._store = store
        self._window_s = window_s
        self._max_waiting_bytes = max_waiting_bytes
        self._recent = RecentIds(window_s)
        self._ends: dict[str, asyncio.Future[executor_pb2.InvokeResponse | None]] = {}
        """By key, where somebody waits: the reply, None where there is none."""
        self._waiting_bytes = 0
        self._sweeps: deque[tuple[float, int]] = deque()
        """When each was, and the last version that it saw."""
        self._too_old = 0
        """The last version that is so. What was there at the start counts as of then: nobody knows how long the machine slept."""
        self._most_bytes = store.stats().limit_bytes // STORE_SHARE
        self._stored = self._stored_bytes = 0
        """Since the last sweep."""
        self._many_stored = asyncio.Event()

    def identify(self, request_id: str, content: bytes, group: str) -> IdentifiedCall:
        """Return the call of a group's id, and of the ``fingerprint`` of its content. Raises ``InvalidArgumentError``."""
        if (size := len(request_id.encode())) > MAX_ID_BYTES:
            raise InvalidArgumentError(
                f"request_id: at most {MAX_ID_BYTES} bytes are allowed, not {size}", {"field": "request_id"}
            )
        return IdentifiedCall(ReplyKey(f"{group}/{request_id}", content), self)

    async def once(
        self,
        call: IdentifiedCall,
        execution: Coroutine[Any, Any, executor_pb2.InvokeResponse],
        deadline: float | None,
        *,
        input_bytes: int,
        reply_bytes: int,
    ) -> executor_pb2.InvokeResponse:
        """Return the reply of a call: the one that there is, or else that of ``execution``, which begins then only.

        Waits for a call of the same id that runs, until ``deadline`` in the loop's time; ``reply_bytes`` is the size of the
        buffers in a reply. Raises ``KaasError``.
        """
        as_key = call.as_key
        try:
            while (decision := self._recent.begin(as_key, time.monotonic())) is False:
                reply = await self._end_of(as_key.key, deadline, input_bytes)
                if reply is not None:
                    return reply
            if not isinstance(decision, bool):
                return decision
            reply = kept = None
            size_bytes = 0
            try:
                reply = await self._find_fresh(as_key)
                if reply is None:
                    reply = await execution
                    if reply.versions:
                        self._count_stored(reply_bytes)
                    else:
                        kept = reply
                        size_bytes = reply_bytes + len(reply.printed) + reply.trace.ByteSize() + KEPT_OVERHEAD_BYTES
                return reply
            finally:
                self._recent.end(as_key, kept, size_bytes, time.monotonic())
                if (end := self._ends.pop(as_key.key, None)) is not None:
                    end.set_result(reply)
        finally:
            execution.close()

    def find(self, as_key: ReplyKey) -> executor_pb2.InvokeResponse | None:
        """Return a reply that is in the store; None where there is none, or it is too old."""
        entry, data = self._read(as_key.key)
        if entry is None or entry.version <= self._too_old:
            return None
        fingerprint, reply = unpack_reply(data, entry.version)
        as_key.check(fingerprint)
        reply.attempts = 1
        reply.group = as_key.group
        return reply

    async def keep_few(self) -> None:
        """Have the store keep no reply for longer than the window, and not too many, from now on."""
        while True:
            self._stored = self._stored_bytes = 0
            self._many_stored.clear()
            while self._sweeps and self._sweeps[0][0] <= time.monotonic() - self._window_s:
                _, self._too_old = self._sweeps.popleft()
            try:
                expiry = await asyncio.wrap_future(self._store.expire(self._too_old, MOST_KEPT, self._most_bytes, self._window_s))
                self._sweeps.append((time.monotonic(), max(expiry.last_version, self._too_old)))
            except KaasError as error:
                _log.warning("replies that are too old cannot be deleted: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(SWEEP_INTERVAL_S, self._window_s / 10)):
                    await self._many_stored.wait()

    def _count_stored(self, reply_bytes: int) -> None:
        self._stored += 1
        self._stored_bytes += KEPT_OVERHEAD_BYTES + (reply_bytes if reply_bytes <= MAX_REPLY_BYTES else 0)
        if self._stored >= SWEPT_BEHIND or self._stored_bytes >= self._most_bytes // 10:
            self._many_stored.set()

    async def _find_fresh(self, as_key: ReplyKey) -> executor_pb2.InvokeResponse | None:
        """Return what ``find`` does; one that is too old is gone then, so that there can be another."""
        entry, _ = self._read(as_key.key)
        if entry is None:
            return None
        if entry.version > self._too_old:
            return self.find(as_key)
        with suppress(KeyNotFoundError):
            await asyncio.wrap_future(self._store.delete(as_key.key, Namespace.REPLIES, entry.version))
        return None

    def _read(self, key: str) -> tuple[Entry | None, bytes]:
        with self._store.snapshot() as snapshot:
            if not snapshot.has(key, Namespace.REPLIES):
                return None, b""
            entry = snapshot.stat(key, Namespace.REPLIES)
            return entry, b"".join(snapshot.pieces(key, namespace=Namespace.REPLIES))

    async def _end_of(self, key: str, deadline: float | None, input_bytes: int) -> executor_pb2.InvokeResponse | None:
        """Wait for the end of a call that runs; return its reply, None where there is none."""
        if self._waiting_bytes + input_bytes > self._max_waiting_bytes:
            raise QueueFullError(
                f"calls with {self._waiting_bytes} bytes of inputs wait already for others of the same request_id"
            )
        end = self._ends.get(key)
        if end is None:
            end = self._ends[key] = asyncio.get_running_loop().create_future()
        self._waiting_bytes += input_bytes
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(end)
        except TimeoutError:
            raise DeadlineExceededError("the deadline passed while another call of the same request_id was running") from None
        finally:
            self._waiting_bytes -= input_bytes
