"""A request checked against its kernels and a device, and lowered to what an engine executes: slots and launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

from kaas_core.request import (
    Access,
    Argument,
    BufferArgument,
    BufferSpec,
    Dim3,
    KernelSpec,
    Packed,
    Request,
    TextureArgument,
    pack_literal,
)
from kaas_core.texture import Texture
from kaas_core.uses import buffer_uses, write_conflicts
from kaas_core.validation import key_problem
from kaas_core.violations import Violations, shown
from kaasd.request.device_checks import (
    PLAIN,
    ActiveBlocks,
    DeviceProperties,
    KernelAttributes,
    LaunchAttributes,
    check_arguments,
    check_residency,
    check_shape,
    launch_attributes,
)

KernelKey: TypeAlias = tuple[str, str]
"""Library and kernel name, as they stand in the request."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One buffer that the kernels use."""

    spec: BufferSpec
    load: bool
    """Starts as what comes with the call, else as ``[offset, offset + size)`` of the key's value. Otherwise as zeros."""
    store: bool
    """Written to its key at the end."""
    reads: bool
    """Its first use reads it."""
    whole: bool
    """Where stored: the buffer becomes the key's value. Otherwise it replaces its range and the rest is kept."""
    key: str = field(init=False)
    """The store's key that backs the buffer, unless it is ephemeral."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.spec.store_key)


@dataclass(frozen=True, slots=True)
class SlotArgument:
    """A buffer's address as an argument."""

    slot: int
    """Index into ``Plan.slots``."""
    access: Access


@dataclass(frozen=True, slots=True)
class PackedSlots:
    """Bytes with addresses of buffers among them as an argument."""

    data: bytes
    slots: tuple[tuple[int, SlotArgument], ...]
    """Each with the offset of its address."""


@dataclass(frozen=True, slots=True)
class TextureSlot:
    """A buffer as a texture or surface, by a handle."""

    slot: SlotArgument
    texture: Texture


@dataclass(frozen=True, slots=True)
class PlannedLaunch:
    """One launch, known to fit the kernel's signature and the device's limits."""

    kernel: KernelKey
    grid: Dim3
    block: Dim3
    shared_memory_bytes: int
    """Dynamic."""
    arguments: tuple[SlotArgument | PackedSlots | TextureSlot | bytes, ...]
    """A slot, by address or handle, slots among bytes, or bytes alone; each as long as its parameter."""
    attributes: LaunchAttributes = PLAIN

    @property
    def slots(self) -> Iterator[SlotArgument]:
        """Every use of a slot."""
        for argument in self.arguments:
            if isinstance(argument, SlotArgument):
                yield argument
            elif isinstance(argument, PackedSlots):
                yield from (slot for _, slot in argument.slots)
            elif isinstance(argument, TextureSlot):
                yield argument.slot


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
    def read_ephemerals(self) -> frozenset[str]:
        """The ephemeral buffers whose first use reads them: zeros, unless the call brings their bytes."""
        return frozenset(slot.spec.name for slot in self.slots if slot.spec.ephemeral and slot.reads)

    def given(self, names: frozenset[str]) -> Plan:
        """Return the plan for calls that bring the bytes of these ``read_ephemerals``."""
        return replace(self, slots=tuple(replace(slot, load=slot.load or slot.spec.name in names) for slot in self.slots))

    @cached_property
    def textures(self) -> Sequence[Texture]:
        """What a device that has textures beside their buffers has of them: each texture or surface of a slot once."""
        found = {
            (argument.slot.slot, argument.texture, argument.slot.access is Access.INPUT): argument.texture
            for launch in self.launches
            for argument in launch.arguments
            if isinstance(argument, TextureSlot)
        }
        return tuple(found.values())

    @cached_property
    def device_bytes(self) -> int:
        """Sum of the slots' sizes."""
        return sum(slot.spec.size_bytes for slot in self.slots)


SMALL_BYTES = 64 << 10
"""Up to this size bytes travel with the launches, through host memory of the run: the host copies 64 KiB in 7 microseconds, and
a copy of its own, with what must be noted of it, takes 15 and more on an H100."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Slots by how they are filled and emptied, as indices into ``Plan.slots``; each is filled in one way."""

    uploaded: tuple[int, ...]
    """Small and loaded: part of the run."""
    shared: tuple[int, ...]
    """Loaded and never written, and large or constant: one copy on the device serves all requests while it is current."""
    copied: tuple[int, ...]
    """Large, loaded and written: copied anew for each request."""
    zeroed: tuple[int, ...]
    """Not loaded."""
    downloaded: tuple[int, ...]
    """Small and written: part of the run."""
    own: tuple[int, ...]
    """All but the shared and the kept ones: memory of one run at a time."""
    kept: tuple[int, ...] = ()
    """Large and stored, where what is stored stays on the device: memory of one request, and of the value after it. Those that
    are not loaded are filled with zeros when it is taken."""

    @property
    def given(self) -> tuple[int, ...]:
        """Those whose memory is not the run's own."""
        return self.shared + self.kept

    @classmethod
    def of(cls, plan: Plan, *, keep_stored: bool = False) -> Layout:
        """Return the layout of a plan, which does not depend on its keys.

        ``keep_stored`` says that large buffers that are stored stay on the device as what they were stored as.
        """
        uses = [use for launch in plan.launches for use in launch.slots]
        written = {use.slot for use in uses if use.access is not Access.INPUT}
        outputs = {use.slot for use in uses if use.access.writes}
        uploaded, shared, copied, zeroed, downloaded, kept = [], [], [], [], [], []
        for index, slot in enumerate(plan.slots):
            small = slot.spec.size_bytes <= SMALL_BYTES
            if keep_stored and slot.store and not small:
                kept.append(index)
                if slot.load:
                    copied.append(index)
            elif not slot.load:
                zeroed.append(index)
            elif index not in written and (slot.spec.constant or not small):
                shared.append(index)
            elif small:
                uploaded.append(index)
            else:
                copied.append(index)
            if small and index in outputs:
                downloaded.append(index)
        given = {*shared, *kept}
        own = tuple(index for index in range(len(plan.slots)) if index not in given)
        return cls(tuple(uploaded), tuple(shared), tuple(copied), tuple(zeroed), tuple(downloaded), own, tuple(kept))


def make_plan(
    request: Request,
    attributes: Mapping[KernelKey, KernelAttributes],
    properties: DeviceProperties,
    active_blocks: ActiveBlocks,
) -> Plan:
    """Check a valid request against its kernels and the device, and lower it.

    ``attributes`` has every kernel that the request names; ``active_blocks`` is asked where it matters.
    Raises ``InvalidRequestError`` with every violation.
    """
    found = Violations()
    for index, kernel in enumerate(request.kernels):
        path = f"kernels[{index}]"
        signature = attributes[kernel.library, kernel.name]
        check_arguments(found, path, kernel, signature)
        check_shape(found, path, kernel, signature, properties)
    found.raise_if_any()
    for index, kernel in enumerate(request.kernels):
        signature = attributes[kernel.library, kernel.name]
        check_residency(found, f"kernels[{index}]", kernel, signature, properties.name, active_blocks)
    found.raise_if_any()

    specs = {spec.name: spec for spec in request.buffers}
    slots = tuple(
        Slot(
            spec=specs[name],
            load=use.reads_first and not specs[name].ephemeral,
            store=use.writes and not specs[name].ephemeral,
            reads=use.reads_first,
            whole=use.replaces_value(specs[name]),
        )
        for name, use in buffer_uses(request).items()
    )
    index_of = {slot.spec.name: index for index, slot in enumerate(slots)}
    launches = (_lower(kernel, attributes[kernel.library, kernel.name], index_of) for kernel in request.kernels)
    return Plan(slots, tuple(launches), request.iterations)


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


def _lower(kernel: KernelSpec, signature: KernelAttributes, index_of: Mapping[str, int]) -> PlannedLaunch:
    return PlannedLaunch(
        kernel=(kernel.library, kernel.name),
        grid=kernel.grid,
        block=kernel.block,
        shared_memory_bytes=kernel.shared_memory_bytes,
        arguments=tuple(_lower_argument(argument, index_of) for argument in kernel.arguments),
        attributes=launch_attributes(kernel, signature),
    )


def _lower_argument(argument: Argument, index_of: Mapping[str, int]) -> SlotArgument | PackedSlots | TextureSlot | bytes:
    def slot(use: BufferArgument) -> SlotArgument:
        return SlotArgument(index_of[use.buffer], use.access)

    if isinstance(argument, BufferArgument):
        return slot(argument)
    if isinstance(argument, Packed):
        return PackedSlots(argument.data, tuple((each.offset_bytes, slot(each.argument)) for each in argument.buffers))
    if isinstance(argument, TextureArgument):
        return TextureSlot(SlotArgument(index_of[argument.buffer], argument.access), argument.texture)
    return pack_literal(argument)
