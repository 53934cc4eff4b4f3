"""The Python client of kaasd.

    with Client() as kaas:
        kaas.put("x", x)
        library = kaas.upload("scale.ptx")
        kaas.submit(Request([Kernel(library, "scale", grid=4, block=256, args=[f32(2.0), inout("x", x.nbytes)])]))
        y = kaas.get("x").array()

``AsyncClient`` is the same for asyncio. What calls return is in ``kaas_client.types``, what they raise in ``kaas_client.errors``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kaas_client import errors
from kaas_client._retry import RetryPolicy
from kaas_client.arguments import (
    BufferSpec,
    Literal,
    Packed,
    TextureSpec,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    inout,
    inp,
    out,
    packed,
    surface,
    texture,
    tmp,
    u8,
    u16,
    u32,
    u64,
)
from kaas_client.builders import Kernel, Request
from kaas_client.types import Key, Result, Value
from kaas_core import __version__

if TYPE_CHECKING:
    from kaas_client.aio import Client as AsyncClient
    from kaas_client.client import Client

__all__ = [
    "Client",
    "AsyncClient",
    "Kernel",
    "Request",
    "Key",
    "Result",
    "Value",
    "RetryPolicy",
    "BufferSpec",
    "inp",
    "inout",
    "out",
    "tmp",
    "Literal",
    "i8",
    "u8",
    "i16",
    "u16",
    "i32",
    "u32",
    "i64",
    "u64",
    "f16",
    "f32",
    "f64",
    "Packed",
    "packed",
    "TextureSpec",
    "texture",
    "surface",
    "errors",
    "__version__",
]

_LAZY = {"Client": ("kaas_client._sync.client", "Client"), "AsyncClient": ("kaas_client._async.client", "Client")}


def __getattr__(name: str) -> Any:
    """Import a client, and with it gRPC, when it is first asked for: building requests and ``kaasctl --help`` need neither."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value
