"""The client for asyncio: the same methods as ``kaas_client.Client``, as coroutines and asynchronous iterators."""

from __future__ import annotations

from kaas_client._async.client import Client
from kaas_client._async.function import Function
from kaas_client._async.stream import InvokeStream

__all__ = ["Client", "Function", "InvokeStream"]
