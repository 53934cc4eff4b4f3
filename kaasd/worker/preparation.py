"""What is done for a request, or for a library, without running it."""

from __future__ import annotations

from contextlib import closing, suppress
from functools import partial

from kaas.v1 import library_pb2
from kaas_core.errors import KeyNotFoundError, ValueTooShortError
from kaas_core.protobuf import dim3_to_proto
from kaasd.devices.base import KernelFault, OutOfMemory
from kaasd.ipc.messages import SerializedRequest
from kaasd.libraries.registry import ResolvedLibrary, content_id, describe_library
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.compiling import load_kernels, with_libraries
from kaasd.worker.executor import Executor, Steps
from kaasd.worker.inputs import BoundRequest, SnapshotChanged
from kaasd.worker.residency import NoRoomError


def prepare(executor: Executor, request: SerializedRequest, cancellation: Cancellation) -> Steps[bool]:
    """Do for a request all that needs no run: code, plan, memory, the CUDA graph. The first run does what cannot be done yet.

    Raises ``KaasError`` for what is wrong with the request itself, ``UnknownRequest``.
    """
    yield from executor.until_loadable(lambda: executor.programs.has_code_of(request), cancellation)
    program = yield from with_libraries(executor, partial(executor.programs.get, request), cancellation)
    program.requests += 1
    later = suppress(KeyNotFoundError, ValueTooShortError, SnapshotChanged, NoRoomError, OutOfMemory, KernelFault)
    try:
        yield from executor.until_loadable(lambda: program.is_ready, cancellation)
        if executor.compiler is not None:
            yield from load_kernels(executor, program, cancellation)
        with later, closing(BoundRequest(executor, program, program.plan, {})) as bound:
            bound.run.warm()
    finally:
        program.requests -= 1
    return True


def inspect(
    executor: Executor, reference: str, content: bytes | None, cancellation: Cancellation
) -> Steps[library_pb2.InspectLibraryResponse]:
    """Describe a library and its kernels by name, of ``content`` where it is not stored yet. Raises ``KaasError``."""
    if content is None:
        library = executor.libraries.resolve(reference)
    else:
        library = ResolvedLibrary(reference, content_id(content), content, None)
    yield from executor.until_loadable(lambda: executor.programs.has_code(library), cancellation)
    described = describe_library(library.data)
    loaded = yield from with_libraries(executor, partial(executor.programs.inspect, library), cancellation)
    kernels = [kernel.attributes for _, kernel in sorted(loaded.items())]
    return library_pb2.InspectLibraryResponse(
        id=described.id,
        kind=described.kind,
        kernels=[
            library_pb2.KernelInfo(
                name=attributes.name,
                parameter_size_bytes=attributes.parameter_size_bytes or (),
                static_shared_memory_bytes=attributes.static_shared_memory_bytes,
                max_threads_per_block=attributes.max_threads_per_block,
                parameter_alignment_bytes=attributes.parameter_alignment_bytes,
                parameter_names=attributes.parameter_names,
                required_block=attributes.required_block and dim3_to_proto(attributes.required_block),
                cluster=attributes.cluster and dim3_to_proto(attributes.cluster),
            )
            for attributes in kernels
        ],
        device=executor.device_name,
    )
