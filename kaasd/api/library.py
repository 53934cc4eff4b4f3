"""``kaas.v1.LibraryService``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from tempfile import SpooledTemporaryFile
from typing import IO

import grpc

from kaas.v1 import library_pb2
from kaas_core.errors import (
    DataDamagedError,
    InvalidLibraryError,
    InvalidRequestError,
    LibraryNotFoundError,
    StoreFullError,
)
from kaasd.api.core import Core
from kaasd.api.rpc import deadline_of
from kaasd.api.shared import in_thread, page, read_upload
from kaasd.libraries.registry import MAX_FILE_NAME_BYTES, MAX_LIBRARY_BYTES, content_id, describe_library
from kaasd.store.disk_room import NO_SPACE

IN_MEMORY_BYTES = 1 << 20
"""Of an upload; a larger one is in a file until all of it has come."""
WHOLE_IN_MEMORY = 2
"""Larger uploads that are looked at and stored at a time."""


class LibraryServicer:
    """Keeps files of GPU code."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._whole_in_memory = asyncio.Semaphore(WHOLE_IN_MEMORY)

    async def UploadLibrary(
        self, requests: AsyncIterator[library_pb2.UploadLibraryRequest], context: grpc.aio.ServicerContext
    ) -> library_pb2.UploadLibraryResponse:
        self._core.refuse_if_draining()
        header, chunks = await read_upload(requests)
        group = self._core.group_of(header.group)
        _check_header(header)
        with SpooledTemporaryFile(IN_MEMORY_BYTES, "w+b", dir=str(self._core.settings.store)) as file:
            async for chunk in chunks:
                await in_thread(self._append, file, chunk)
            # A small one is in memory already, and may have to wait for the compiler behind others.
            async with self._whole_in_memory if header.size_bytes > IN_MEMORY_BYTES else nullcontext():
                library = await self._store(await in_thread(_content, file), header.file_name, group, deadline_of(context))
        return library_pb2.UploadLibraryResponse(library=library)

    async def InspectLibrary(
        self, request: library_pb2.InspectLibraryRequest, context: grpc.aio.ServicerContext
    ) -> library_pb2.InspectLibraryResponse:
        self._core.group_of(request.group)
        if not request.library:
            raise InvalidRequestError.at("library", "must not be empty")
        return await self._core.dispatcher.inspect(request.library, deadline=deadline_of(context))

    async def ListLibraries(
        self, request: library_pb2.ListLibrariesRequest, context: grpc.aio.ServicerContext
    ) -> library_pb2.ListLibrariesResponse:
        self._core.group_of(request.group)
        libraries, token = page(request.page_size, request.page_token, "", self._core.libraries.list, lambda library: library.id)
        return library_pb2.ListLibrariesResponse(libraries=libraries, next_page_token=token)

    async def DeleteLibrary(
        self, request: library_pb2.DeleteLibraryRequest, context: grpc.aio.ServicerContext
    ) -> library_pb2.DeleteLibraryResponse:
        self._core.refuse_if_draining()
        self._core.group_of(request.group)
        await self._core.write(self._delete(request.id))
        return library_pb2.DeleteLibraryResponse()

    def _append(self, file: IO[bytes], chunk: bytes) -> None:
        """Write some of an upload to a file without a name, which goes with the call. Raises ``StoreFullError``."""
        try:
            file.write(chunk)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            text = f"an upload needs room in {self._core.settings.store} until all of it is there: {error.strerror}"
            raise StoreFullError(text) from None

    async def _delete(self, library_id: str) -> None:
        await in_thread(self._core.libraries.delete, library_id)
        self._core.dispatcher.forget_library(library_id)

    async def _store(self, content: bytes, file_name: str, group: str, deadline: float | None) -> library_pb2.Library:
        """Keep ``content`` for ``group``, if some device can load it.

        The library stays as it was where it is kept already, and not damaged.
        """
        libraries = self._core.libraries
        try:
            return await in_thread(libraries.find_whole, await in_thread(content_id, content))
        except (LibraryNotFoundError, DataDamagedError):
            library = await in_thread(describe_library, content, file_name)
        await self._core.dispatcher.inspect("", content, deadline)
        await self._core.write(in_thread(libraries.put, library, content, group))
        return library


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _check_header(header: library_pb2.UploadLibraryHeader) -> None:
    if len(header.file_name.encode()) > MAX_FILE_NAME_BYTES:
        raise InvalidRequestError.at("header.file_name", f"at most {MAX_FILE_NAME_BYTES} bytes of UTF-8 are allowed")
    if header.size_bytes > MAX_LIBRARY_BYTES:
        raise InvalidLibraryError(f"a library has at most {MAX_LIBRARY_BYTES} bytes, not {header.size_bytes}")
