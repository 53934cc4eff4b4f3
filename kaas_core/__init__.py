"""What daemon and client share: the types of a request, its JSON and protobuf forms and their validation; errors; addresses."""

from typing import TypeAlias

__version__ = "0.1.0"

ReadableBuffer: TypeAlias = "bytes | bytearray | memoryview"
"""Contiguous bytes to read from; for a device, a memoryview is of format ``B``."""
