"""A request checked against its kernels and a device, and lowered to what an engine executes: slots and launches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from kaasd.request.literals import literal_size, pack_literal
from kaasd.request.target import DeviceProperties, KernelAttributes
from kaasd.request.types import Access, BufferArgument, BufferSpec, Dim3, KernelSpec, Literal, Request
from kaasd.request.uses import buffer_uses, write_conflicts
from kaasd.request.validation import key_problem
from kaasd.request.violations import Violations, shown

KernelKey: TypeAlias = tuple[str, str]
"""Library and kernel name, as they stand in the request."""
ADDRESS_BYTES = 8
"""A buffer's address as a kernel's parameter."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One buffer that the kernels use."""

    spec: BufferSpec
    load: bool
    """Starts as the range ``[offset, offset + size)`` of the key's value; otherwise as zeros."""
    store: bool
    """Written to its key at the end."""
    whole: bool
    """Where stored: the buffer becomes the key's value. Otherwise it replaces its range and the rest is kept."""

    @property
    def zero(self) -> bool:
        """Starts as zeros, unless its bytes come with the call."""
        return not self.load


@dataclass(frozen=True, slots=True)
class SlotArgument:
    """A buffer's address as an argument."""

    slot: int
    """Index into ``Plan.slots``."""
    access: Access


@dataclass(frozen=True, slots=True)
class PlannedLaunch:
    """One launch, known to fit the kernel's signature and the device's limits."""

    kernel: KernelKey
    grid: Dim3
    block: Dim3
    shared_memory_bytes: int
    """Dynamic."""
    arguments: tuple[SlotArgument | bytes, ...]
    """A slot, or the bytes of a literal; each as long as its parameter."""


@dataclass(frozen=True)
class Plan:
    """What to bring to the device, what to launch, and what to bring back."""

    slots: tuple[Slot, ...]
    """In the order of first use."""
    launches: tuple[PlannedLaunch, ...]
    """In order; index equals that of the request's kernel."""
    iterations: int

    @cached_property
    def slot_index(self) -> Mapping[str, int]:
        """Index into ``slots`` by buffer name. A buffer that no kernel uses has none."""
        return {slot.spec.name: index for index, slot in enumerate(self.slots)}

    @cached_property
    def device_bytes(self) -> int:
        """Sum of the slots' sizes."""
        return sum(slot.spec.size_bytes for slot in self.slots)


def make_plan(request: Request, attributes: Mapping[KernelKey, KernelAttributes], properties: DeviceProperties) -> Plan:
    """Check a valid request against its kernels and the device, and lower it.

    ``attributes`` has every kernel that the request names. Raises ``InvalidRequestError`` with every violation.
    """
    found = Violations()
    for index, kernel in enumerate(request.kernels):
        path = f"kernels[{index}]"
        signature = attributes[kernel.library, kernel.name]
        _check_arguments(found, path, kernel, signature)
        _check_shape(found, path, kernel, signature, properties)
    found.raise_if_any()

    specs = {spec.name: spec for spec in request.buffers}
    slots = tuple(
        Slot(
            spec=specs[name],
            load=use.reads_first and not specs[name].ephemeral,
            store=use.writes and not specs[name].ephemeral,
            whole=use.replaces_value(specs[name]),
        )
        for name, use in buffer_uses(request).items()
    )
    index_of = {slot.spec.name: index for index, slot in enumerate(slots)}
    return Plan(slots, tuple(_lower(kernel, index_of) for kernel in request.kernels), request.iterations)


def rebind(plan: Plan, keys: Mapping[str, str]) -> Plan:
    """Return the plan with other keys for the buffers named in ``keys``.

    Raises ``InvalidRequestError`` where a buffer is unknown or ephemeral, a key is malformed, or two buffers would now write
    the same bytes of a key.
    """
    if not keys:
        return plan
    found = Violations()
    slots = list(plan.slots)
    for name, key in keys.items():
        path = f"bindings[{shown(name)}]"
        index = plan.slot_index.get(name)
        if index is None:
            found.add(path, "no kernel uses a buffer of this name")
        elif slots[index].spec.ephemeral:
            found.add(path, "an ephemeral buffer never touches the store and has no key")
        elif problem := key_problem(key):
            found.add(path, f"key {problem}")
        else:
            slots[index] = replace(slots[index], spec=replace(slots[index].spec, key=key))
    found.raise_if_any()
    for one, other in write_conflicts((slot.spec, slot.whole) for slot in slots if slot.store):
        found.add(
            f"bindings[{shown((other if other.name in keys else one).name)}]",
            f"buffers {shown(one.name)} and {shown(other.name)} would write the same bytes of key {shown(other.store_key)}",
        )
    found.raise_if_any()
    return replace(plan, slots=tuple(slots))


def _lower(kernel: KernelSpec, index_of: Mapping[str, int]) -> PlannedLaunch:
    return PlannedLaunch(
        kernel=(kernel.library, kernel.name),
        grid=kernel.grid,
        block=kernel.block,
        shared_memory_bytes=kernel.shared_memory_bytes,
        arguments=tuple(
            SlotArgument(index_of[argument.buffer], argument.access)
            if isinstance(argument, BufferArgument)
            else pack_literal(argument)
            for argument in kernel.arguments
        ),
    )


def _check_arguments(found: Violations, path: str, kernel: KernelSpec, signature: KernelAttributes) -> None:
    sizes = signature.parameter_size_bytes
    if sizes is None:
        return
    if len(kernel.arguments) != len(sizes):
        found.add(
            f"{path}.arguments",
            f"kernel {shown(kernel.name)} takes {len(sizes)} arguments, but {len(kernel.arguments)} are given",
        )
        return
    for index, (argument, size) in enumerate(zip(kernel.arguments, sizes, strict=True)):
        if isinstance(argument, Literal):
            given, what = literal_size(argument.type), f"a literal of type '{argument.type}'"
        else:
            given, what = ADDRESS_BYTES, f"the address of buffer {shown(argument.buffer)}"
        if given != size:
            found.add(
                f"{path}.arguments[{index}]",
                f"kernel {shown(kernel.name)} takes {size} bytes here, but {what} has {given}",
            )


def _check_shape(
    found: Violations, path: str, kernel: KernelSpec, signature: KernelAttributes, properties: DeviceProperties
) -> None:
    for field, size, limits in (
        ("grid", kernel.grid, properties.max_grid),
        ("block", kernel.block, properties.max_block),
    ):
        for axis, (number, limit) in enumerate(zip(size, limits, strict=True)):
            if number > limit:
                found.add(f"{path}.{field}[{axis}]", f"device {properties.name} allows at most {limit}, not {number}")
    threads = math.prod(kernel.block)
    if threads > properties.max_threads_per_block:
        found.add(
            f"{path}.block",
            f"device {properties.name} allows at most {properties.max_threads_per_block} threads in a block, not {threads}",
        )
    elif threads > signature.max_threads_per_block:
        found.add(
            f"{path}.block",
            f"kernel {shown(kernel.name)} allows at most {signature.max_threads_per_block} threads in a block, not {threads}",
        )
    if signature.required_block not in (None, kernel.block):
        found.add(
            f"{path}.block", f"kernel {shown(kernel.name)} requires a block of {signature.required_block}, not {kernel.block}"
        )
    shared = signature.static_shared_memory_bytes + kernel.shared_memory_bytes
    if shared > properties.max_shared_memory_bytes:
        found.add(
            f"{path}.shared_memory_bytes",
            f"device {properties.name} allows at most {properties.max_shared_memory_bytes} bytes of shared memory in a block, "
            f"not {shared} ({signature.static_shared_memory_bytes} static and {kernel.shared_memory_bytes} dynamic)",
        )
