"""How the calls of a client are made: one channel to a server, and one method for each shape of call. For asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc

from kaas.v1 import executor_pb2
from kaas_client import _rpcs
from kaas_client._async.local import LocalTransport, StreamCall
from kaas_client._asyncio import Queue, call_blocking, open_channel, send, sleep
from kaas_client._local import transport_of
from kaas_client._retry import Repeat, RetryPolicy, Tries, new_request_id
from kaas_client._rpcs import Page, Rpc
from kaas_client._status import from_rpc_error
from kaas_client._tls import File, tls_of
from kaas_client._transfer import Receiver, Upload
from kaas_client.errors import ConnectionFailedError, ConnectionLostError, KaasError
from kaas_core.address import default_connect_address, parse_address

T = TypeVar("T")


class Connection:
    """A channel to a server. Calls raise ``kaas_client.errors``."""

    def __init__(
        self,
        address: str | None,
        timeout: float | None,
        wait_for_ready: bool,
        max_message_bytes: int,
        retry: RetryPolicy | None,
        group: str,
        tls: tuple[File | None, File | None, File | None] = (None, None, None),
    ) -> None:
        """``tls`` are a CA, a certificate and its key. Raises ``ValueError``, ``OSError``."""
        self.address = default_connect_address() if address is None else parse_address(address)
        self._timeout = timeout
        self._wait_for_ready = wait_for_ready
        self._retry = retry
        self._group = group
        self.was_reached = False
        """There was a server, so that it may come back."""
        transport = transport_of(self.address)
        self._channel = open_channel(self.address, _rpcs.channel_options(max_message_bytes), tls_of(self.address, *tls))
        self.stubs = _rpcs.Stubs(self._channel)
        self._local = LocalTransport(self.address, self.stubs, max_message_bytes, transport)

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled. Idempotent."""
        self._local.close()
        await self._channel.close()

    def options(self, timeout: float | None) -> dict[str, Any]:
        """Return the options of a call to one of the ``stubs``."""
        return {"timeout": self._timeout if timeout is None else timeout, "wait_for_ready": self._wait_for_ready}

    def request_id(self, given: str) -> str:
        """Return the id of a call: the caller's, and where there is none a new one, as far as calls may be made again."""
        return given or ("" if self._retry is None else new_request_id())

    def group(self, given: str) -> str:
        """Return whom a call is for: whom its caller names, else whom all calls are for; empty, where the server is to say."""
        return given or self._group

    async def unary(self, rpc: Rpc[T], timeout: float | None) -> T:
        """Make a call of one message that is answered by one message."""
        tries = self.tries(rpc.repeat, timeout)
        while True:
            try:
                answer = await self._answer(rpc, tries)
            except (grpc.RpcError, KaasError) as error:
                wait = self._wait(tries, error)
            else:
                self.was_reached = True
                return rpc.read(answer, tries.count)
            await sleep(wait)

    async def _answer(self, rpc: Rpc[T], tries: Tries) -> Any:
        """Make a call of one message once, over the local channel where there is one. Raises ``grpc.RpcError``, ``KaasError``."""
        if rpc.is_local:
            for _ in range(2):  # A connection that has ended meanwhile is made anew, as gRPC does.
                channel = await self._local.channel(self.options(tries.timeout))
                if channel is None:
                    break
                try:
                    return await channel.call(rpc.request, self.options(tries.timeout)["timeout"])
                except ConnectionLostError:
                    raise
                except ConnectionFailedError:
                    continue
        return await rpc.method(self.stubs)(rpc.request, **self.options(tries.timeout))

    def stream(self, messages: Queue[executor_pb2.InvokeStreamRequest | None], timeout: float | None) -> StreamCall:
        """Return a call of ``InvokeStream``, which sends messages as they come, until None does."""
        return StreamCall(self._local, self.stubs, messages, self.options(timeout))

    async def upload(self, rpc: Rpc[T], timeout: float | None) -> T:
        """Make a call whose messages are an ``Upload``, whose own failure comes before what the server made of it."""
        upload: Upload[Any] = rpc.request
        tries = self.tries(rpc.repeat, timeout)
        while True:
            try:
                answer = await send(rpc.method(self.stubs), upload, self.options(tries.timeout))
            except grpc.RpcError as error:
                if upload.error or upload.is_begun:
                    raise upload.error or from_rpc_error(error, self.address) from None
                wait = self._wait(tries, error)
            else:
                self.was_reached = True
                if upload.error:
                    raise upload.error
                return rpc.read(answer)
            await sleep(wait)

    async def download(self, rpc: Rpc[T], download: Receiver, timeout: float | None) -> T:
        """Make a call whose answer is a stream of messages for ``download``."""
        tries = self.tries(rpc.repeat, timeout)
        while True:
            answers = rpc.method(self.stubs)(rpc.request, **self.options(tries.timeout))
            is_begun = False
            try:
                async for answer in answers:
                    is_begun = True
                    if download.blocking:
                        await call_blocking(download.feed, answer)
                    else:
                        download.feed(answer)
            except grpc.RpcError as error:
                if is_begun:  # What has come cannot be taken back.
                    raise from_rpc_error(error, self.address) from None
                wait = self._wait(tries, error)
            except BaseException:
                answers.cancel()
                raise
            else:
                self.was_reached = True
                return rpc.read(None)
            await sleep(wait)

    def tries(self, repeat: Repeat, timeout: float | None) -> Tries:
        """Return the tries of one call."""
        timeout = self._timeout if timeout is None else timeout
        return Tries(self._retry, repeat, timeout, was_reached=self.was_reached)

    def _wait(self, tries: Tries, error: grpc.RpcError | KaasError) -> float:
        """Return how long to wait before a call is made again. Raises what ``error`` means where it is not."""
        failure = error if isinstance(error, KaasError) else from_rpc_error(error, self.address)
        self.was_reached = self.was_reached or type(failure) is not ConnectionFailedError
        wait = tries.again(failure)
        if wait is None:
            raise failure from None
        return wait

    async def pages(self, rpc: Callable[[str], Rpc[Page[T]]], timeout: float | None) -> AsyncIterator[T]:
        """Yield the items of a listing; ``rpc`` makes the call for a page's token, and ``timeout`` is for each page."""
        token = ""
        while True:
            items, token = await self.unary(rpc(token), timeout)
            for item in items:
                yield item
            if not token:
                return
