"""``kaas.v1.KvService``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import closing, contextmanager
from tempfile import TemporaryFile
from typing import IO

import grpc

from kaas.v1 import kv_pb2
from kaas_core.array_form import ArrayForm, form_problems
from kaas_core.errors import DeadlineExceededError, InvalidArgumentError
from kaas_core.validation import key_problem
from kaas_core.violations import Violations
from kaasd.api.core import Core
from kaasd.api.shared import in_thread, page, read_upload
from kaasd.store import base as store
from kaasd.store.disk_room import NO_SPACE

CHUNK_BYTES = 1 << 20
"""Of a stream. Between 256 KiB and 1 MiB a call moves about 1 GB/s and delays small calls by 2 to 4 ms."""
INLINE_BYTES = 1 << 20
"""A value up to this size is held in memory; a larger one goes to and from the store bit by bit."""
GET_GRACE_S = 30.0
GET_BYTES_PER_S = 4 << 20
"""A reader of a large value has 30 s, and a second more for every 4 MiB."""
STALLED_S = 0.25
"""Until a reader ends the store cannot use pages again, and what others write fills it in a second or two. So one that takes
nothing for so long gets the rest from a copy."""
NO_ROOM_S = 5.0
"""For a reader that takes nothing, where there is no room for its copy."""
COPIES_BYTES = 1 << 30
"""That all readers may have, on the disk of the store."""


class KvServicer:
    """The key-value store."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._copied_bytes = 0

    async def Put(self, requests: AsyncIterator[kv_pb2.PutRequest], context: grpc.aio.ServicerContext) -> kv_pb2.PutResponse:
        self._core.refuse_if_draining()
        header, chunks = await read_upload(requests)
        group = self._core.group_of(header.group)
        _check_key(header.key)
        form = _form(header)
        self._core.groups.check_room(group, header.key, header.size_bytes)
        if header.size_bytes <= INLINE_BYTES:
            entry = await self._commit(header.key, [chunk async for chunk in chunks], group, form)
        else:
            staged = self._core.store.stage()
            try:
                async for chunk in chunks:
                    await in_thread(staged.append, chunk)
                entry = await self._commit(header.key, staged, group, form)
            finally:
                staged.close()
        return kv_pb2.PutResponse(entry=_entry(entry))

    async def Get(self, request: kv_pb2.GetRequest, context: grpc.aio.ServicerContext) -> None:
        self._core.watch.refuse_if_lost()
        self._core.group_of(request.group)
        size = request.size_bytes if request.HasField("size_bytes") else None
        with self._core.store.snapshot() as snapshot:
            entry = snapshot.stat(request.key)
            pieces = snapshot.pieces(request.key, request.offset_bytes, size)
            to_send = entry.size_bytes - request.offset_bytes if size is None else size
            if to_send > INLINE_BYTES:
                with closing(_chunks(pieces)) as chunks:
                    await self._send_large(context, entry, snapshot, chunks, to_send)
                return
            value = b"".join(pieces)
        await context.write(kv_pb2.GetResponse(entry=_entry(entry)))
        if value:
            await context.write(kv_pb2.GetResponse(chunk=value))

    async def Stat(self, request: kv_pb2.StatRequest, context: grpc.aio.ServicerContext) -> kv_pb2.StatResponse:
        self._core.watch.refuse_if_lost()
        self._core.group_of(request.group)
        with self._core.store.snapshot() as snapshot:
            return kv_pb2.StatResponse(entry=_entry(snapshot.stat(request.key)))

    async def List(self, request: kv_pb2.ListRequest, context: grpc.aio.ServicerContext) -> kv_pb2.ListResponse:
        self._core.watch.refuse_if_lost()
        self._core.group_of(request.group)
        with self._core.store.snapshot() as snapshot:
            entries, token = page(
                request.page_size,
                request.page_token,
                request.prefix,
                lambda after, limit: snapshot.list(request.prefix, after, limit),
                lambda entry: entry.key,
            )
        return kv_pb2.ListResponse(entries=[_entry(entry) for entry in entries], next_page_token=token)

    async def Delete(self, request: kv_pb2.DeleteRequest, context: grpc.aio.ServicerContext) -> kv_pb2.DeleteResponse:
        self._core.refuse_if_draining()
        self._core.group_of(request.group)
        await self._core.write(asyncio.wrap_future(self._core.store.delete(request.key)))
        return kv_pb2.DeleteResponse()

    async def _commit(self, key: str, pieces: list[bytes] | store.Staged, group: str, form: ArrayForm | None) -> store.Entry:
        write = store.Write(key, pieces, account=group, form=form)
        entries = await self._core.write(asyncio.wrap_future(self._core.store.commit([write])))
        return entries[key]

    async def _send_large(
        self,
        context: grpc.aio.ServicerContext,
        entry: store.Entry,
        snapshot: store.ValueSnapshot,
        chunks: Iterator[bytes],
        to_send: int,
    ) -> None:
        """Send a value bit by bit, for no longer than a reader may take. Holds the snapshot only while the reader takes it."""
        allowed_s = GET_GRACE_S + to_send / GET_BYTES_PER_S
        try:
            async with asyncio.timeout(allowed_s):
                await context.write(kv_pb2.GetResponse(entry=_entry(entry)))
                for chunk in chunks:
                    to_send -= len(chunk)
                    writing = asyncio.ensure_future(context.write(kv_pb2.GetResponse(chunk=chunk)))
                    try:
                        if not await _ends(writing, STALLED_S):
                            with self._room_for_copy(to_send) as file:
                                if file is not None:
                                    await in_thread(_copy, chunks, file)
                                    snapshot.close()
                                    await writing
                                    await _send_file(context, file)
                                    return
                            if not await _ends(writing, NO_ROOM_S):
                                raise DeadlineExceededError(f"the reader of {entry.key!r} took nothing for {NO_ROOM_S:g} s")
                        await writing
                    finally:
                        writing.cancel()
        except TimeoutError:
            raise DeadlineExceededError(f"reading {entry.key!r} took more than {allowed_s:.0f} s") from None

    @contextmanager
    def _room_for_copy(self, size_bytes: int) -> Iterator[IO[bytes] | None]:
        """Yield a file without a name that has this room on the disk; None where the disk has not."""
        self._copied_bytes += size_bytes
        try:
            with TemporaryFile(dir=self._core.settings.store) as file:
                has_room = self._copied_bytes <= COPIES_BYTES
                try:
                    if size_bytes and has_room:
                        os.posix_fallocate(file.fileno(), 0, size_bytes)
                except OSError as error:
                    if error.errno not in NO_SPACE:
                        raise
                    has_room = False
                yield file if has_room else None
        finally:
            self._copied_bytes -= size_bytes


async def _ends(writing: asyncio.Future[None], timeout_s: float) -> bool:
    """Return whether a write ends in time."""
    done, _ = await asyncio.wait([writing], timeout=timeout_s)
    return bool(done)


def _chunks(pieces: Iterator[memoryview]) -> Generator[bytes, None, None]:
    for piece in pieces:
        for start in range(0, len(piece), CHUNK_BYTES):
            yield bytes(piece[start : start + CHUNK_BYTES])


def _copy(chunks: Iterator[bytes], file: IO[bytes]) -> None:
    """Write what is left to a file, and go to its beginning."""
    file.writelines(chunks)
    file.seek(0)


async def _send_file(context: grpc.aio.ServicerContext, file: IO[bytes]) -> None:
    while chunk := await in_thread(file.read, CHUNK_BYTES):
        await context.write(kv_pb2.GetResponse(chunk=chunk))


def _check_key(key: str) -> None:
    if problem := key_problem(key):
        raise InvalidArgumentError(f"key: {problem}")


def _form(header: kv_pb2.PutHeader) -> ArrayForm | None:
    """Return what a value is to its users. Raises ``InvalidRequestError``."""
    form = ArrayForm(header.dtype, tuple(header.shape), header.fortran_order)
    found = Violations()
    for field, problem in form_problems(form.dtype, form.shape, form.fortran_order, header.size_bytes):
        found.add(field, problem)
    found.raise_if_any()
    return form if form.dtype else None


def _entry(entry: store.Entry) -> kv_pb2.Entry:
    message = kv_pb2.Entry(key=entry.key, size_bytes=entry.size_bytes, version=entry.version)
    if entry.form is not None:
        message.dtype, message.fortran_order = entry.form.dtype, entry.form.fortran_order
        message.shape.extend(entry.form.shape)
    message.update_time.FromNanoseconds(entry.update_time_ns)
    return message
