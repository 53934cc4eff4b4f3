"""Runs one request: plan, buffers, kernels, one commit.

Used by the thread that owns the device. Until the commit nothing outside the device has changed, so whatever fails before it
leaves the store as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import perf_counter_ns

from kaas.v1 import library_pb2
from kaasd.devices.base import BufferRef, Device, DeviceBuffer, Kernel, KernelFault, Launch, OutOfMemory, Stopped
from kaasd.engine.libraries import Libraries, ResolvedLibrary, content_id
from kaasd.engine.programs import Programs
from kaasd.errors import CancelledError, InvalidRequestError, KernelFaultError, OutOfDeviceMemoryError
from kaasd.request.plan import Plan, Slot, rebind
from kaasd.request.target import KernelAttributes
from kaasd.store.base import KeyValueStore, Write


@dataclass(frozen=True, slots=True)
class Result:
    """A request that ran and is committed."""

    outputs: Mapping[str, bytes]
    """The buffers asked for, by name."""
    versions: Mapping[str, int]
    """New versions, by key."""
    kernels_launched: int
    plan_ns: int
    load_ns: int
    run_ns: int
    commit_ns: int


class Executor:
    """Runs requests on one device."""

    def __init__(self, device: Device, store: KeyValueStore, libraries: Libraries) -> None:
        self._device = device
        self._store = store
        self._libraries = libraries
        self._programs = Programs(device, libraries)
        self._memory_used_bytes = 0
        self.device_lost = False
        """True once a fault has made the device unusable for this process."""

    @property
    def device_name(self) -> str:
        """``cuda:N`` or ``emulator``."""
        return self._device.properties.name

    @property
    def memory_used_bytes(self) -> int:
        """Device memory that buffers hold now."""
        return self._memory_used_bytes

    def prepare(self, request: bytes) -> None:
        """Plan a serialised ``kaas.v1.Request`` and keep the plan. Raises as ``execute`` for what needs no run."""
        self._programs.get(request)

    def inspect(self, reference: str, content: bytes | None) -> tuple[library_pb2.Library, list[KernelAttributes]]:
        """Return a library and its kernels by name; ``content``, if given, in place of what is stored. Raises ``KaasError``."""
        if content is None:
            library = self._libraries.resolve(reference)
        else:
            library = ResolvedLibrary(reference, content_id(content), content, None)
        described = self._libraries.describe(library.data)
        kernels = self._programs.inspect(library)
        return described, [kernels[name].attributes for name in sorted(kernels)]

    def execute(
        self,
        request: bytes,
        *,
        keys: Mapping[str, str],
        inputs: Mapping[str, bytes],
        return_buffers: Sequence[str],
        check_stop: Callable[[], None],
    ) -> Result:
        """Run a serialised ``kaas.v1.Request``.

        ``keys`` and ``inputs`` re-bind buffers by name. ``check_stop`` raises when the request is to stop. Raises ``KaasError``;
        the store is then as it was.
        """
        started = perf_counter_ns()
        program = self._programs.get(request)
        plan = rebind(program.plan, keys)
        planned = perf_counter_ns()
        with ExitStack() as stack:
            buffers = self._allocate(plan, stack)
            self._load(plan.slots, buffers, inputs)
            loaded = perf_counter_ns()
            check_stop()
            self._run(plan, program.kernels, buffers, check_stop)
            check_stop()
            ran = perf_counter_ns()
            contents = self._read(plan.slots, buffers, return_buffers)
            writes = [
                Write(slot.spec.store_key, [contents[slot.spec.name]], None if slot.whole else slot.spec.offset_bytes)
                for slot in plan.slots
                if slot.store
            ]
            versions = {}
            if writes:
                entries = self._store.commit(writes).result()
                versions = {key: entry.version for key, entry in entries.items()}
            outputs = {name: bytes(contents[name]) for name in return_buffers}
        committed = perf_counter_ns()
        return Result(
            outputs=outputs,
            versions=versions,
            kernels_launched=len(plan.launches) * plan.iterations,
            plan_ns=planned - started,
            load_ns=loaded - planned,
            run_ns=ran - loaded,
            commit_ns=committed - ran,
        )

    def close(self) -> None:
        """Unload everything. Idempotent."""
        self._programs.close()

    def _allocate(self, plan: Plan, stack: ExitStack) -> list[DeviceBuffer]:
        """Allocate every slot's buffer, to be freed by ``stack``."""
        asked = plan.device_bytes
        buffers = []
        try:
            for slot in plan.slots:
                buffer = self._device.allocate(slot.spec.size_bytes)
                stack.callback(self._free, buffer)
                self._memory_used_bytes += slot.spec.size_bytes
                buffers.append(buffer)
        except OutOfMemory as error:
            held, total = self._memory_used_bytes, self._device.properties.memory_bytes
            raise OutOfDeviceMemoryError(
                f"the request's buffers need {asked} bytes of {self.device_name}, which has {total} bytes; {error}",
                {"asked_bytes": str(asked), "held_bytes": str(held), "memory_bytes": str(total)},
            ) from error
        return buffers

    def _free(self, buffer: DeviceBuffer) -> None:
        if not self.device_lost:
            buffer.close()
        self._memory_used_bytes -= buffer.size_bytes

    def _load(self, slots: Sequence[Slot], buffers: Sequence[DeviceBuffer], inputs: Mapping[str, bytes]) -> None:
        """Fill every buffer: from inline bytes, from the store's own pages within one snapshot, or with zeros."""
        from_store = []
        for slot, buffer in zip(slots, buffers, strict=True):
            given = inputs.get(slot.spec.name)
            if given is not None:
                if len(given) != slot.spec.size_bytes:
                    raise InvalidRequestError.at(
                        f'inputs["{slot.spec.name}"]', f"has {len(given)} bytes, but the buffer has {slot.spec.size_bytes}"
                    )
                buffer.write(given)
            elif slot.load:
                from_store.append((slot.spec, buffer))
            else:
                buffer.zero()
        if not from_store:
            return
        with self._store.snapshot() as snapshot:
            for spec, buffer in from_store:
                offset = 0
                for piece in snapshot.pieces(spec.store_key, spec.offset_bytes, spec.size_bytes):
                    buffer.write(piece, offset)
                    offset += len(piece)

    def _run(
        self, plan: Plan, kernels: Sequence[Kernel], buffers: Sequence[DeviceBuffer], check_stop: Callable[[], None]
    ) -> None:
        launches = [
            Launch(
                kernel,
                launch.grid,
                launch.block,
                launch.shared_memory_bytes,
                tuple(
                    argument
                    if isinstance(argument, bytes)
                    else BufferRef(plan.slots[argument.slot].spec.name, buffers[argument.slot], argument.access)
                    for argument in launch.arguments
                ),
            )
            for launch, kernel in zip(plan.launches, kernels, strict=True)
        ]
        try:
            with closing(self._device.prepare(launches, plan.iterations)) as run:
                run.start()
                run.wait()
                run.done()
        except Stopped:
            check_stop()
            raise CancelledError("the kernel was stopped") from None
        except KernelFault as fault:
            self.device_lost = fault.device_lost
            index = fault.launch_index
            kernel = launches[index].kernel.attributes.name if index >= 0 else "unknown"
            metadata = {"fault": fault.fault, "kernel_index": str(index), "kernel": kernel}
            if fault.report:
                metadata["report"] = fault.report
            raise KernelFaultError(f"kernels[{index}] ({kernel}) faulted: {fault.fault}: {fault.message}", metadata) from fault
        except OutOfMemory as error:
            raise OutOfDeviceMemoryError(f"{self.device_name} has too little memory to launch: {error}") from error

    @staticmethod
    def _read(slots: Sequence[Slot], buffers: Sequence[DeviceBuffer], return_buffers: Sequence[str]) -> dict[str, bytearray]:
        """Copy back every buffer that is stored or returned, by name."""
        contents = {}
        for slot, buffer in zip(slots, buffers, strict=True):
            if slot.store or slot.spec.name in return_buffers:
                contents[slot.spec.name] = bytearray(slot.spec.size_bytes)
                buffer.read(contents[slot.spec.name])
        return contents
