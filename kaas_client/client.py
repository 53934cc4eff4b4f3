"""The client for threads: every call blocks until its answer is there. ``kaas_client.aio`` has the same for asyncio."""

from __future__ import annotations

from kaas_client._sync.client import Client
from kaas_client._sync.function import Function
from kaas_client._sync.stream import InvokeStream

__all__ = ["Client", "Function", "InvokeStream"]
