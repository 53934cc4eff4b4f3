"""Libraries and functions of the cluster."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from kaas.v1 import types_pb2
from kaas_client.builders import Request
from kaas_client.ray import table
from kaas_core import request as core
from kaas_core.errors import FunctionNotFoundError, LibraryNotFoundError
from kaas_core.protobuf import request_from_proto, request_to_proto
from kaas_core.violations import shown
from kaasd.libraries.registry import content_id, describe_library


def upload(library: str | os.PathLike[str] | bytes) -> str:
    """Have the cluster know a file of GPU code, or its content; return its content id, which a ``Kernel`` takes as its library.

    Raises ``InvalidLibraryError``, ``OSError``.
    """
    content = library if isinstance(library, bytes) else Path(library).read_bytes()
    reference = content_id(content)
    if not table.exists(table.Kind.LIBRARY, reference.encode()):
        describe_library(content)
        table.put(table.Kind.LIBRARY, reference.encode(), content)
    return reference


def published(request: core.Request) -> core.Request:
    """Return the request with all libraries named by content id, and known to the cluster.

    Raises ``LibraryNotFoundError``, ``InvalidLibraryError``.
    """
    ids = {kernel.library: _content_id(kernel.library) for kernel in request.kernels}
    return replace(request, kernels=tuple(replace(kernel, library=ids[kernel.library]) for kernel in request.kernels))


def register(name: str, request: Request) -> None:
    """Have the cluster know a request under a name, in place of what has it. Raises as ``remote``."""
    message = request_to_proto(published(request.spec))
    table.put(table.Kind.FUNCTION, name.encode(), message.SerializeToString(deterministic=True))


def find_function(name: str) -> core.Request:
    """Return the request that is registered under a name. Raises ``FunctionNotFoundError``."""
    content = table.get(table.Kind.FUNCTION, name.encode())
    if content is None:
        raise FunctionNotFoundError(f"no function is registered as {shown(name)}")
    return request_from_proto(types_pb2.Request.FromString(content))


def _content_id(reference: str) -> str:
    if reference.startswith("/"):
        try:
            return upload(reference)
        except OSError as error:
            raise LibraryNotFoundError(f"library {shown(reference)} cannot be read: {error.strerror}") from None
    if not table.exists(table.Kind.LIBRARY, reference.encode()):
        raise LibraryNotFoundError(f"the cluster has no library {reference}; upload it with kaas_client.ray.upload")
    return reference
