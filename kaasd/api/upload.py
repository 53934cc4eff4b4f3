"""The shape that uploads share: a header once and first, then chunks that add up to the size that it declared."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from kaas_core.errors import InvalidRequestError, UploadIncompleteError


async def read_upload(messages: AsyncIterator[Any]) -> tuple[Any, AsyncIterator[bytes]]:
    """Return an upload's header, and an iterator over its chunks that raises where they do not meet the header's size.

    Raises ``InvalidRequestError`` (messages out of order), ``UploadIncompleteError``.
    """
    first = await anext(messages, None)
    if first is None:
        raise UploadIncompleteError("the stream ended before its header")
    if first.WhichOneof("part") != "header":
        raise InvalidRequestError.at("header", "the first message must be the header")
    return first.header, _chunks(messages, first.header.size_bytes)


async def _chunks(messages: AsyncIterator[Any], size_bytes: int) -> AsyncIterator[bytes]:
    received = 0
    async for message in messages:
        if message.WhichOneof("part") != "chunk":
            raise InvalidRequestError.at("chunk", "every message after the header must be a chunk")
        chunk: bytes = message.chunk
        received += len(chunk)
        if received > size_bytes:
            raise UploadIncompleteError(f"more bytes came than the {size_bytes} that the header declared; nothing was stored")
        if chunk:
            yield chunk
    if received < size_bytes:
        raise UploadIncompleteError(f"the stream ended after {received} of {size_bytes} bytes; nothing was stored")
