"""Loaded PTX: variables with their segments, and kernels, whose machine code comes when it is first needed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence

from kaas.worker.v1 import compiler_pb2
from kaasd.devices.emulator.codegen.machine_code import NativeCode
from kaasd.devices.emulator.runtime.address_space import AddressSpace, Allocation
from kaasd.libraries import UnsupportedLibrary
from kaasd.request.device_checks import KernelAttributes


class KernelCode:
    """The machine code of a kernel, in this process."""

    def __init__(self, content: bytes, variables: Sequence[Allocation]) -> None:
        """``content`` is an ``EmulatedCode``; ``variables`` are those of its unit."""
        self.description = compiler_pb2.EmulatedCode.FromString(content)
        self.native = NativeCode(self.description.object)
        self.description.ClearField("object")
        if used := self.description.variables:
            addresses = (ctypes.c_uint64 * len(used))(*(variables[number].address for number in used))
            ctypes.memmove(self.native.address("variables"), addresses, ctypes.sizeof(addresses))


class EmulatedKernel:
    """One entry point."""

    is_ready = True
    """One run at a time is under way, so that all have the same variables."""

    def __init__(
        self, unit: PtxUnit, description: compiler_pb2.EmulatedKernel, compile_kernel: Callable[[str], bytes] | None
    ) -> None:
        self.unit = unit
        self.description = description
        self.parameters = [(place.name, place.offset_bytes, place.size_bytes) for place in description.parameters]
        self._compile = compile_kernel
        self._code: KernelCode | None = None
        self.attributes = KernelAttributes(
            name=description.name,
            parameter_size_bytes=tuple(size for _, _, size in self.parameters),
            static_shared_memory_bytes=description.static_shared_bytes,
            max_threads_per_block=description.max_threads,
            required_block=tuple(description.required_block) or None,  # type: ignore[arg-type]
            parameter_alignment_bytes=tuple(place.alignment_bytes for place in description.parameters),
            parameter_names=tuple(place.name for place in description.parameters),
            cluster=tuple(description.cluster) or None,  # type: ignore[arg-type]
            needs_cluster=description.needs_cluster,
            max_cluster_blocks=description.max_cluster_blocks or None,
        )

    @property
    def needs_code(self) -> bool:
        """Whether ``load_code`` is to be called before it can be prepared."""
        return self._code is None and self._compile is None

    def load_code(self, content: bytes) -> None:
        """Take the machine code of the kernel."""
        if self._code is None:
            self._code = KernelCode(content, self.unit.variables)

    @property
    def code(self) -> KernelCode:
        """The machine code; made when first needed, where nothing else makes it."""
        if self._code is None:
            assert self._compile is not None, "its code has not been loaded"
            self.load_code(self._compile(self.attributes.name))
            assert self._code is not None
        return self._code

    def close(self) -> None:
        """Free the code. Idempotent."""
        if self._code is not None:
            self._code.native.close()


class PtxUnit:
    """One PTX text, loaded."""

    def __init__(
        self, description: compiler_pb2.EmulatedUnit, space: AddressSpace, compile_kernel: Callable[[str], bytes] | None
    ) -> None:
        """Raises ``OutOfMemory``."""
        self.files = description.files
        """Source files by the number that locations have for them."""
        self.variables: list[Allocation] = []
        self.kernels: dict[str, EmulatedKernel] = {}
        try:
            for each in description.variables:
                self.variables.append(space.allocate(each.size_bytes, each.name, read_only=each.constant))
            values = [self._initial_value(each) for each in description.variables]
            for variable, value in zip(self.variables, values, strict=True):
                variable.write(value)
            self.resets = tuple(
                variable.filler(value)
                for each, variable, value in zip(description.variables, self.variables, values, strict=True)
                if each.written
            )
            """To be called before a run: each gives a variable that kernels may write its initial value."""
            self.kernels = {each.name: EmulatedKernel(self, each, compile_kernel) for each in description.kernels}
        except BaseException:
            self.close()
            raise

    def _initial_value(self, description: compiler_pb2.EmulatedVariable) -> bytes:
        value = bytearray(description.initial)
        for place in description.addresses:
            address = (self.variables[place.variable].address + place.addend) % (1 << 64) >> place.shift
            end = place.offset_bytes + place.size_bytes
            value[place.offset_bytes : end] = (address % (1 << 8 * place.size_bytes)).to_bytes(place.size_bytes, "little")
        return bytes(value)

    def close(self) -> None:
        """Free the variables and the code. Idempotent."""
        for allocation in self.variables:
            allocation.close()
        for kernel in self.kernels.values():
            kernel.close()


class EmulatedModule:
    """All PTX texts of a library, loaded."""

    def __init__(self, compiled: bytes, space: AddressSpace, compile_kernel: Callable[[str], bytes] | None = None) -> None:
        """``compiled`` is an ``EmulatedLibrary``. Without ``compile_kernel`` machine code comes by ``load_code``.

        Raises ``OutOfMemory``.
        """
        description = compiler_pb2.EmulatedLibrary.FromString(compiled)
        self.host_functions: Sequence[str] = tuple(description.host_functions)
        self._units: list[PtxUnit] = []
        self.kernels: dict[str, EmulatedKernel] = {}
        try:
            for each in description.units:
                unit = PtxUnit(each, space, compile_kernel)
                self._units.append(unit)
                self.kernels |= unit.kernels
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[PtxUnit]:
        return iter(self._units)

    def load_host_function(self, name: str) -> EmulatedKernel:
        """Raise ``UnsupportedLibrary``."""
        raise UnsupportedLibrary("host code launches its kernels on a CUDA GPU; the emulated device runs none")

    def close(self) -> None:
        """Unload. Idempotent."""
        for unit in self._units:
            unit.close()
