"""Brings a request and its data together on the device."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from itertools import count
from types import MappingProxyType
from typing import Any

from kaas_core import ReadableBuffer
from kaas_core.request import BufferSpec
from kaasd.devices.base import DeviceBuffer, Run, Transfer
from kaasd.devices.trace import Tracer
from kaasd.request.plan import Plan, Slot
from kaasd.store.base import ValueSnapshot
from kaasd.worker.device_memory import DeviceMemory, Holding, copy_cost_s
from kaasd.worker.executor import Executor
from kaasd.worker.programs import Program
from kaasd.worker.residency import NOBODY, Owner

_serial = count()


class ValueHolding(Holding):
    """A range of a value on the device, for all who read it."""

    def __init__(self, key: tuple[object, ...], buffers: Sequence[DeviceBuffer]) -> None:
        super().__init__(key, buffers)
        self.version = 0
        self.current_at = -1
        """The last commit at which the value had this version: while there is no other, it has."""
        self.transfer: Transfer | None = None
        """While it is on its way."""


class SnapshotChanged(Exception):
    """There was a commit while a request was bound, which has taken some values as they were before it."""


class BoundRequest:
    """A request with all that it needs on the device, or on its way there. What it takes from the store is of one state of it."""

    def __init__(
        self,
        executor: Executor,
        program: Program,
        plan: Plan,
        inputs: Mapping[str, ReadableBuffer],
        input_keys: Mapping[str, str] = MappingProxyType({}),
        tracer: Tracer[Any] | None = None,
        owner: Owner = NOBODY,
    ) -> None:
        """Get memory, and begin to bring what is shared.

        ``inputs`` come in place of the store's values, by buffer name; those of ``input_keys`` are the values of keys that do not
        change. ``tracer`` notes what is copied. What is new on the device counts for ``owner``. Raises ``NoRoomError``,
        ``OwnerLimitError``, ``OutOfMemory``, ``KernelFault``, ``KeyNotFoundError``, ``ValueTooShortError``, ``SnapshotChanged``.
        """
        self._executor = executor
        self._owner = owner
        self._slots, self._layout = plan.slots, program.layout
        self._inputs, self._input_keys = inputs, input_keys
        self._tracer = tracer
        self._snapshot: ValueSnapshot | None = None
        self._commit = executor.store.last_commit
        """The state of the store that this is about."""
        self._relies_on_commit = False
        self.transfers: list[Transfer] = []
        """They come before the run."""
        self.brought_bytes = 0
        """Of stored inputs that stay on the device, that this request has had copied there."""
        self._kept: dict[int, ValueHolding] = {}
        """By slot, what holds those that are to stay on the device."""
        self._undo = ExitStack()
        self._undo.callback(self._drop_kept)
        try:
            given = [self._shared(self._slots[index]) for index in self._layout.shared]
            given += [self._make_kept(index) for index in self._layout.kept]
            self._instance = program.take_instance(executor.memory, executor.device, given, owner)
            self._undo.callback(program.give_instance, executor.memory, self._instance, owner)
            self.run: Run = self._instance.run(given)
        except BaseException:
            self._undo.close()
            raise

    def buffer(self, slot: int) -> DeviceBuffer:
        """Return the buffer of a slot."""
        return self._instance.buffer(slot)

    def load(self) -> None:
        """Begin to bring what this request alone reads.

        Raises ``KeyNotFoundError``, ``ValueTooShortError``, ``SnapshotChanged``.
        """
        for index, target in zip(self._layout.uploaded, self.run.uploads, strict=True):
            self._fill(index, target)
        for index in self._layout.copied:
            if not self._copy_resident(self._slots[index], self.buffer(index)):
                self._upload(self._slots[index], self.buffer(index), self._content(self._slots[index]))

    def close_snapshot(self) -> None:
        """Let go of the store's pages, once the transfers have ended. Idempotent."""
        if self._snapshot is not None:
            self._snapshot.close()

    def close(self) -> None:
        """Give back what was taken, when the run has ended; waits for transfers. Idempotent."""
        self._undo.close()

    def _fill(self, index: int, target: memoryview) -> None:
        """Write a small value where the run takes it from, unless it stands there since an earlier run."""
        slot, uploaded = self._slots[index], self._instance.uploaded
        key = slot.key
        inline = slot.spec.name in self._inputs
        if not inline and uploaded.get(index) == (key, self._commit):
            self._relies_on_commit = True
            return
        uploaded.pop(index, None)
        position = 0
        for piece in self._content(slot):
            target[position : position + len(piece)] = piece
            position += len(piece)
        if not inline:
            uploaded[index] = key, self._commit

    def _open_snapshot(self) -> ValueSnapshot:
        if self._snapshot is None:
            self._snapshot = snapshot = self._undo.enter_context(self._executor.store.snapshot())
            if snapshot.commit != self._commit:
                if self._relies_on_commit:
                    raise SnapshotChanged
                self._commit = snapshot.commit
        return self._snapshot

    def _content(self, slot: Slot) -> Iterable[memoryview]:
        given = self._inputs.get(slot.spec.name)
        if given is not None:
            return (memoryview(given),)
        return self._open_snapshot().pieces(slot.key, slot.spec.offset_bytes, slot.spec.size_bytes)

    def _upload(self, slot: Slot, buffer: DeviceBuffer, pieces: Iterable[memoryview]) -> Transfer:
        spec = slot.spec
        with nullcontext() if self._tracer is None else self._tracer.upload(spec.name, spec.size_bytes):
            transfer = self._executor.device.upload(buffer, pieces, self._executor.mapped)
        self._undo.callback(transfer.wait)
        self.transfers.append(transfer)
        self._executor.uploads += 1
        self._executor.uploaded_bytes += spec.size_bytes
        return transfer

    def _copy_resident(self, slot: Slot, buffer: DeviceBuffer) -> bool:
        """Begin to copy what the device has of an input already; return False where it has nothing."""
        key = self._input_keys.get(slot.spec.name)
        resident = None if key is None else self._executor.memory.use(value_key(key, slot.spec), self._owner)
        if resident is None:
            return False
        self._undo.callback(self._executor.memory.release, resident, self._owner)
        transfer = self._executor.device.copy(buffer, resident.buffers[0])
        self._undo.callback(transfer.wait)
        self.transfers.append(transfer)
        return True

    def take_kept(self) -> dict[int, ValueHolding]:
        """Hand over what is to stay on the device, pinned, by slot."""
        kept, self._kept = self._kept, {}
        return kept

    def _drop_kept(self) -> None:
        for held in self._kept.values():
            self._executor.memory.drop(held)
            self._executor.memory.release(held, self._owner)

    def _make_kept(self, index: int) -> DeviceBuffer:
        slot, key = self._slots[index], ("kept", next(_serial))
        size = slot.spec.size_bytes
        memory = self._executor.memory
        held = memory.make(key, [size], copy_cost_s(size), lambda buffers: ValueHolding(key, buffers), owner=self._owner)
        self._kept[index] = held
        if not slot.load:
            held.buffers[0].zero()
        return held.buffers[0]

    def _shared(self, slot: Slot) -> DeviceBuffer:
        """Return the buffer that holds an input, or will."""
        memory = self._executor.memory
        if slot.spec.name in self._inputs:
            key = ("inline", next(_serial))
            held = memory.make(key, [slot.spec.size_bytes], 0.0, lambda buffers: Holding(key, buffers), owner=self._owner)
            self._undo.callback(memory.release, held, self._owner)
            self._undo.callback(memory.drop, held)  # comes first: what was released may have gone
            self._upload(slot, held.buffers[0], self._content(slot))
            return held.buffers[0]
        resident = self._resident(slot)
        self._undo.callback(memory.release, resident, self._owner)
        if resident.transfer is not None:
            if resident.transfer.done():
                resident.transfer = None
            elif resident.transfer not in self.transfers:
                self.transfers.append(resident.transfer)
        return resident.buffers[0]

    def _resident(self, slot: Slot) -> ValueHolding:
        """Return what holds a slot's value on the device, or will, pinned."""
        memory, spec, key = self._executor.memory, slot.spec, value_key(slot.key, slot.spec)
        resident = memory.use(key, self._owner)
        if resident is None:
            version = self._open_snapshot().stat(slot.key).version
            size, cost_s = spec.size_bytes, copy_cost_s(spec.size_bytes)
            made = memory.make(key, [size], cost_s, lambda buffers: ValueHolding(key, buffers), owner=self._owner)
            return self._bring(slot, made, version)
        assert isinstance(resident, ValueHolding)
        if spec.constant:
            return resident
        if resident.current_at == self._commit:
            self._relies_on_commit = True
            return resident
        try:
            version = self._open_snapshot().stat(slot.key).version
        except BaseException:
            memory.release(resident, self._owner)
            raise
        if resident.version == version:
            resident.current_at = self._commit
            return resident
        if memory.is_shared(resident):  # others still compute with the old value
            memory.drop(resident)
            memory.release(resident, self._owner)
            return self._resident(slot)
        return self._bring(slot, resident, version)

    def _bring(self, slot: Slot, resident: ValueHolding, version: int) -> ValueHolding:
        """Begin to copy a slot's value to its place on the device."""
        try:
            resident.transfer = self._upload(slot, resident.buffers[0], self._content(slot))
        except BaseException:
            self._executor.memory.drop(resident)
            self._executor.memory.release(resident, self._owner)
            raise
        resident.version, resident.current_at = version, self._commit
        self.brought_bytes += slot.spec.size_bytes
        return resident


def value_key(key: str, spec: BufferSpec) -> tuple[object, ...]:
    """Return what the part of a key's value that a buffer is read from is held under."""
    return range_key(key, spec.offset_bytes, spec.size_bytes)


def range_key(key: str, offset_bytes: int, size_bytes: int) -> tuple[object, ...]:
    """Return what a part of a key's value is held under."""
    return ("value", key, offset_bytes, size_bytes)


def values_needed(program: Program, plan: Plan, inputs: Collection[str]) -> list[tuple[object, ...]]:
    """Return what the values are held under that a request shares with others; what its caller brings is in ``inputs``."""
    needed = (plan.slots[index] for index in program.layout.shared)
    return [value_key(slot.key, slot.spec) for slot in needed if slot.spec.name not in inputs]


def bytes_needed(program: Program, plan: Plan, inputs: Collection[str]) -> int:
    """Return what the buffers of a request take of the device together; a value that several are read from counts once."""
    layout, slots = program.layout, plan.slots
    values = {
        value_key(slots[index].key, slots[index].spec): slots[index].spec.size_bytes
        for index in layout.shared
        if slots[index].spec.name not in inputs
    }
    brought = [index for index in layout.shared if slots[index].spec.name in inputs]
    return sum(values.values()) + sum(slots[index].spec.size_bytes for index in (*brought, *layout.kept, *layout.own))


def values_dropped(memory: DeviceMemory) -> Iterator[tuple[str, int, int]]:
    """Yield what of values has gone from the device since this was last asked, and is not back: key, offset and size."""
    for key in memory.take_gone():
        if isinstance(key, tuple) and key[0] == "value" and key not in memory:
            yield key[1], key[2], key[3]


def values_held(memory: DeviceMemory) -> set[str]:
    """Return the keys of which some value, or a part of it, is on the device. For any thread."""
    return {key[1] for key in memory.keys() if isinstance(key, tuple) and key[0] == "value"}  # noqa: SIM118  (no mapping)
