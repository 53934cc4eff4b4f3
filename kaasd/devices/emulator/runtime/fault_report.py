"""What a person needs to know of a fault: where, what, and what was near."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

from kaas.worker.v1 import compiler_pb2
from kaas_core.request import Access
from kaasd.devices.base import KernelFault, Launch
from kaasd.devices.emulator.codegen.structures import (
    LAUNCH,
    MOST_CLUSTER_BLOCKS,
    OFFSET_BITS,
    OFFSET_MASK,
    THREAD,
    WARP_SIZE,
    Fault,
    Segment,
    ThreadState,
)
from kaasd.devices.emulator.runtime.address_space import AddressSpace, Allocation
from kaasd.devices.emulator.runtime.module import EmulatedKernel

ILLEGAL_ADDRESS = "CUDA_ERROR_ILLEGAL_ADDRESS"
MISALIGNED = "CUDA_ERROR_MISALIGNED_ADDRESS"
WRITE_TO_INPUT = "KAAS_ERROR_WRITE_TO_INPUT"
ACCESSES = {Fault.LOAD: "read", Fault.STORE: "write", Fault.ATOMIC: "atomic access"}
OTHERS = {
    Fault.TRAP: ("CUDA_ERROR_LAUNCH_FAILED", "the kernel trapped"),
    Fault.DEADLOCK: ("CUDA_ERROR_LAUNCH_FAILED", "deadlock: every thread left waits for one that cannot come"),
    Fault.STACK: ("CUDA_ERROR_HARDWARE_STACK_ERROR", "the stack is full: calls are nested too deep, or alloca asks for too much"),
    Fault.CALL: ("CUDA_ERROR_INVALID_PC", "an indirect call to an address where there is no function of this signature"),
    Fault.BARRIER: ("CUDA_ERROR_ILLEGAL_INSTRUCTION", "a barrier's number or thread count is out of range"),
    Fault.MEMBER: ("CUDA_ERROR_ILLEGAL_INSTRUCTION", "the thread is not in the member mask that it gives"),
    Fault.MATRIX: ("CUDA_ERROR_ILLEGAL_INSTRUCTION", "a matrix descriptor has a base offset, which is not supported"),
    Fault.TENSOR: (
        "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "a tensor map is not one that the kernel made, field by field, with tensormap.replace; or it has another rank, "
        "interleaving, steps between elements, elements of less than a byte, NaN as fill, or rows that are no multiple of 16 "
        "bytes",
    ),
    Fault.BULK: ("CUDA_ERROR_ILLEGAL_INSTRUCTION", "the size of a bulk copy is no multiple of 16 bytes"),
    Fault.FREE: ("CUDA_ERROR_LAUNCH_FAILED", "free of a pointer that malloc did not return, or that is free already"),
    Fault.ASSERT: ("CUDA_ERROR_ASSERT", "an assertion failed"),
    Fault.RACE: ("KAAS_ERROR_DATA_RACE", "a data race"),
    Fault.TEXTURE: (
        ILLEGAL_ADDRESS,
        "the handle is not that of a texture or surface of this launch that the instruction can use",
    ),
    Fault.SURFACE: (ILLEGAL_ADDRESS, "an access outside of a surface, or not aligned to its size"),
    Fault.UNINITIALIZED: ("KAAS_ERROR_UNINITIALIZED_READ", "a read of memory that nothing wrote"),
}
_WINDOWS = {Segment.SHARED: "shared memory", Segment.LOCAL: "local memory", Segment.PARAM: "the kernel's parameters"}


def kernel_fault(context: Any, launches: Sequence[Launch], space: AddressSpace) -> KernelFault:
    """Return the exception for what the context of a run says."""
    launch = launches[context.launch_index]
    kernel = launch.kernel
    assert isinstance(kernel, EmulatedKernel)
    kind = Fault(context.fault)
    lines = [f"kernel {kernel.attributes.name}, grid {_triple(launch.grid)}, block {_triple(launch.block)}"]
    block = (context.block_x, context.block_y, context.block_z)
    if kind is Fault.DEADLOCK:
        fault, message = OTHERS[kind]
        lines += [f"in block {_triple(block)}:", *_waiting(context, kernel)]
    else:
        site = kernel.code.description.sites[context.site]
        thread = (context.thread_x, context.thread_y, context.thread_z)
        lines += [*_place(site, kernel), f"by thread {_triple(thread)} of block {_triple(block)}"]
        if kind in ACCESSES:
            fault, message = _access(kind, context.address, site.size_bytes, launch, kernel, space)
            lines.append(f"device address {context.address:#018x}")
        else:
            fault, message = OTHERS[kind]
            if kind is Fault.TRAP and kernel.code.description.meets_as_grid and not launch.attributes.cooperative:
                message += ": its blocks wait for one another, which needs a launch that is cooperative"
            if kind in (Fault.RACE, Fault.UNINITIALIZED):
                message += f": {_where(context.address, site.size_bytes, launch, kernel, space)}"
            if kind is Fault.RACE:
                lines += _other_access(context, launch, kernel)
            elif kind is Fault.ASSERT:
                file, function, text = (
                    space.read_string(getattr(context, f"assert_{part}")) for part in ("file", "function", "message")
                )
                message = f"{file}:{context.assert_line}: {function}: assertion `{text}` failed"
    message = f"{kernel.attributes.name}: {message}"
    return KernelFault(fault, int(context.launch_index), message, "\n".join([message, *lines]))


def _triple(numbers: tuple[int, int, int]) -> str:
    return "({}, {}, {})".format(*numbers)


def _place(site: compiler_pb2.EmulatedSite, kernel: EmulatedKernel) -> list[str]:
    """Say where an instruction is, in PTX and in the source that it came from."""
    words = kernel.code.description.words
    routine = words[site.routine]
    lines = [
        f"at PTX line {site.line}: {words[site.mnemonic]}" + (f", in {routine}" if routine != kernel.attributes.name else "")
    ]
    files = dict(kernel.unit.files)
    for verb, field in (("from", "location"), ("inlined at", "inlined_at")):
        if site.HasField(field):
            place = getattr(site, field)
            lines.append(f"{verb} {files.get(place.file, '?')}:{place.line}:{place.column}")
    return lines


def _access(kind: Fault, address: int, size: int, launch: Launch, kernel: EmulatedKernel, space: AddressSpace) -> tuple[str, str]:
    """Say what is wrong with an access."""
    what = f"{ACCESSES[kind]} of {size} bytes"
    segment, offset = address >> OFFSET_BITS, address & OFFSET_MASK
    rank = segment - Segment.CLUSTER
    if 0 <= rank < prod(launch.attributes.cluster or kernel.attributes.cluster or (1, 1, 1)):
        limit = kernel.description.static_shared_bytes + launch.shared_memory_bytes
        return _judge(what, size, offset, limit, f"shared memory of block {rank} of the cluster, of", kind, "")
    if Segment.NOWHERE <= segment < Segment.CLUSTER + MOST_CLUSTER_BLOCKS:
        return ILLEGAL_ADDRESS, f"{what} at {address:#x}, which is in no block of the cluster"
    if segment in _WINDOWS:
        limits = {
            Segment.SHARED: kernel.description.static_shared_bytes + launch.shared_memory_bytes,
            Segment.LOCAL: kernel.code.description.local_stride,
            Segment.PARAM: kernel.description.parameters_size_bytes,
        }
        return _judge(what, size, offset, limits[Segment(segment)], f"{_WINDOWS[Segment(segment)]} of", kind, "")
    if segment == Segment.NULL and offset < OFFSET_MASK // 2:
        return ILLEGAL_ADDRESS, f"{what} through a null pointer ({address:#x})"
    if offset > OFFSET_MASK // 2:  # below a buffer's start is the end of the segment before
        segment, offset = segment + 1, offset - OFFSET_MASK - 1
    allocation = space.find(segment << OFFSET_BITS)[0]
    if allocation is None:
        return ILLEGAL_ADDRESS, f"{what} at {address:#x}, where there is no buffer"
    access = _access_of(allocation, launch)
    return _judge(what, size, offset, allocation.size_bytes, _name(allocation, launch), kind, access)


def _where(address: int, size: int, launch: Launch, kernel: EmulatedKernel, space: AddressSpace) -> str:
    """Say where an access is that is within bounds."""
    segment, offset = address >> OFFSET_BITS, address & OFFSET_MASK
    if Segment.CLUSTER <= segment < Segment.CLUSTER + MOST_CLUSTER_BLOCKS:
        return f"{size} bytes at offset {offset} of shared memory of block {segment - Segment.CLUSTER} of the cluster"
    if segment in _WINDOWS:
        return f"{size} bytes at offset {offset} of {_WINDOWS[Segment(segment)]}"
    allocation = space.find(address)[0]
    assert allocation is not None
    return f"{size} bytes at offset {offset} of {_name(allocation, launch)} {allocation.size_bytes} bytes"


def _other_access(context: Any, launch: Launch, kernel: EmulatedKernel) -> list[str]:
    """Say which access a thread raced with."""
    warps = -(-launch.block[0] * launch.block[1] * launch.block[2] // WARP_SIZE)
    block, warp = divmod(context.other_warp, warps)
    thread = warp * WARP_SIZE + context.other_lane % WARP_SIZE
    what = "written" if context.other_writes else "read"
    place = _place(kernel.code.description.sites[context.other_site], kernel)
    triples = [_triple(_coordinates(number, size)) for number, size in ((thread, launch.block), (block, launch.grid))]
    return [f"{what} before by thread {triples[0]} of block {triples[1]}", *place]


def _coordinates(number: int, size: tuple[int, int, int]) -> tuple[int, int, int]:
    return number % size[0], number // size[0] % size[1], number // (size[0] * size[1])


def _judge(what: str, size: int, offset: int, limit: int, place: str, kind: Fault, access: str) -> tuple[str, str]:
    where = f"{what} at offset {offset} of {place} {limit} bytes"
    if offset < 0:
        return ILLEGAL_ADDRESS, f"{where}: {-offset} bytes before its start"
    if offset + size > limit:
        return ILLEGAL_ADDRESS, f"{where}: {offset + size - limit} bytes past its end"
    if kind is not Fault.LOAD and access:
        return (WRITE_TO_INPUT if access == "input" else ILLEGAL_ADDRESS), f"{where}: it is {access} only"
    return MISALIGNED, f"{where}: not aligned to {size} bytes"


def _name(allocation: Allocation, launch: Launch) -> str:
    for reference in launch.references:
        if reference.buffer is allocation:
            return f"buffer {reference.name!r} of"
    return f"variable {allocation.name} of" if allocation.name else "a buffer that is not an argument, of"


def _access_of(allocation: Allocation, launch: Launch) -> str:
    """``input`` or ``constant`` where writes are not allowed, else nothing."""
    accesses = {each.access for each in launch.references if each.buffer is allocation}
    if accesses == {Access.INPUT}:
        return "input"
    return "constant" if allocation.read_only else ""


def _waiting(context: Any, kernel: EmulatedKernel) -> list[str]:
    """Say where the threads of the block at hand wait."""
    launch = LAUNCH.ctype.from_address(context.launch)
    places: Counter[int] = Counter()
    exited = 0
    for index in range(launch.threads):
        thread = THREAD.ctype.from_address(context.block + launch.threads_offset + index * launch.thread_stride)
        if thread.state == ThreadState.EXITED:
            exited += 1
        else:
            places[thread.site] += 1
    lines = []
    for number, count in places.items():
        place = "; ".join(_place(kernel.code.description.sites[number], kernel))
        lines.append(f"  {count} thread{'s wait' if count > 1 else ' waits'} {place}")
    if exited:
        lines.append(f"  {exited} thread{'s' if exited > 1 else ''} had exited")
    return lines
