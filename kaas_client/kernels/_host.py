"""The host half of a compiled function, run in this process without a GPU: what it would launch is written down.

CuTe DSL compiles the function that launches a kernel to machine code of the CPU. It decides grid, block and cluster, shared
memory and the bytes of each parameter, in any way that it likes, so that the only safe way to know them is to run it. Its calls
to CUDA are answered here.

Addresses are told from numbers by running it twice, with other addresses: what changes is made of an address.
"""

from __future__ import annotations

import ctypes
import dataclasses
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

import llvmlite.binding as llvm

from kaas_core.request import Dim3

ADDRESS_BYTES = 8
_FIRST, _SECOND = 0x4000_0000_0000, 0x5000_0000_0000
"""Where buffers seem to lie: no memory is there, and none is touched."""
_APART = 1 << 36
"""Between buffers."""
_CLUSTER, _COOPERATIVE, _PROGRAMMATIC = 4, 2, 6
_IGNORED = {0, 5, 8, 11}
"""Attributes that change no result: none, a scheduling policy, a priority, and a cluster that is preferred to the needed one."""


class HostError(Exception):
    """The host half cannot be run here, or launches what no request can hold."""


class _Config(ctypes.Structure):
    """``cudaLaunchConfig_t``."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_memory_bytes", ctypes.c_size_t),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint32),
    )


class _Attribute(ctypes.Structure):
    """``cudaLaunchAttribute``."""

    _fields_ = (("id", ctypes.c_uint32), ("pad", ctypes.c_uint8 * 4), ("value", ctypes.c_uint32 * 16))


class Layout(NamedTuple):
    """A parameter of a kernel."""

    size_bytes: int
    fields: tuple[tuple[int, int], ...]
    """Offset and size in bytes of all that it is made of: what lies between them is left of whatever stood there before."""

    def read(self, address: int) -> bytes:
        """Return its bytes, with zeros between its fields."""
        made, found = bytearray(self.size_bytes), ctypes.string_at(address, self.size_bytes)
        for offset, size in self.fields:
            made[offset : offset + size] = found[offset : offset + size]
        return bytes(made)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One launch, as the host half asks for it."""

    kernel: str
    grid: Dim3
    block: Dim3
    shared_memory_bytes: int
    cluster: Dim3 | None
    cooperative: bool
    programmatic_dependent_launch: bool
    parameters: tuple[bytes, ...]
    addresses: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Of each parameter: at which byte the address of which buffer stands."""


class _Recorder:
    """What stands for CUDA's runtime while a host half runs."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.names: list[str] = []
        self.parameters: Sequence[Layout] = ()
        self.launches: list[Recorded] = []
        self.error = ""
        c = ctypes
        status = c.c_int
        signatures: dict[str, tuple[Callable[..., int], tuple[Any, ...]]] = {
            "_cudaGetDevice": (self._zero, (c.c_void_p,)),
            "_cudaDeviceGetAttribute": (self._zero, (c.c_void_p, status, status)),
            "_cuKernelGetAttribute": (self._zero, (c.c_void_p, status, c.c_void_p, status)),
            "_cudaFuncSetAttribute": (lambda *_: 0, (c.c_void_p, status, status)),
            "_cudaKernelSetAttributeForDevice": (lambda *_: 0, (c.c_void_p, status, status, status)),
            "_cudaLibraryLoadData": (lambda *_: 0, (c.c_void_p,) * 4 + (status, c.c_void_p, c.c_void_p, status)),
            "_cudaLibraryGetKernel": (self._get_kernel, (c.c_void_p, c.c_void_p, c.c_char_p)),
            "_cudaLaunchKernelEx": (self._launch, (c.c_void_p, c.c_void_p, c.c_void_p)),
        }
        self._callbacks = {name: c.CFUNCTYPE(status, *types)(answer) for name, (answer, types) in signatures.items()}
        for name, callback in self._callbacks.items():
            address = c.cast(callback, c.c_void_p).value
            assert address is not None
            llvm.add_symbol(name, address)

    def answers(self, name: str) -> bool:
        """Return whether a function may be called: one of CUDA's that is answered here, or one of the C library."""
        return name in self._callbacks or name == "_GLOBAL_OFFSET_TABLE_" or hasattr(ctypes.CDLL(None), name)

    @staticmethod
    def _zero(place: int, *_: int) -> int:
        ctypes.c_int.from_address(place).value = 0
        return 0

    def _get_kernel(self, place: int, _library: int, name: bytes) -> int:
        self.names.append(name.decode())
        ctypes.c_void_p.from_address(place).value = len(self.names)
        return 0

    def _launch(self, where: int, kernel: int | None, arguments: int) -> int:
        try:
            self.launches.append(self._recorded(_Config.from_address(where), kernel or 0, arguments))
        except HostError as error:  # it must not pass through compiled code
            self.error = self.error or str(error)
        return 0

    def _recorded(self, config: _Config, kernel: int, arguments: int) -> Recorded:
        cluster, flags = None, {_COOPERATIVE: False, _PROGRAMMATIC: False}
        for attribute in (
            (_Attribute * config.attribute_count).from_address(config.attributes or 0) if config.attribute_count else ()
        ):
            if attribute.id == _CLUSTER:
                cluster = _dim3(attribute.value)
            elif attribute.id in flags:
                flags[attribute.id] = bool(attribute.value[0])
            elif attribute.id not in _IGNORED:
                raise HostError(f"its launch has the attribute {attribute.id} of CUDA, which a request cannot hold")
        count = len(self.parameters)
        places = (ctypes.c_void_p * count).from_address(arguments) if count else ()
        return Recorded(
            self.names[kernel - 1] if 0 < kernel <= len(self.names) else "",
            _dim3(config.grid),
            _dim3(config.block),
            int(config.shared_memory_bytes),
            None if cluster in (None, (1, 1, 1)) else cluster,
            flags[_COOPERATIVE],
            flags[_PROGRAMMATIC],
            tuple(each.read(place) for place, each in zip(places, self.parameters, strict=True)),
        )


def _dim3(numbers: Any) -> Dim3:
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


_recorders: list[_Recorder] = []
_recorders_lock = Lock()


def _recorder() -> _Recorder:
    """Return the one of this process: the linker's table of names is the process's."""
    with _recorders_lock:
        if not _recorders:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            _recorders.append(_Recorder())
        return _recorders[0]


class Host:
    """An object file whose function launches one kernel."""

    def __init__(self, code: bytes, load: str, function: str, parameters: Sequence[Layout]) -> None:
        """``load`` is what finds its kernels, ``function`` what launches; ``parameters`` are those of the kernel.

        Raises ``HostError`` where it calls what is not answered here.
        """
        self._recorder = _recorder()
        if missing := [name for name in undefined_names(code) if not self._recorder.answers(name)]:
            raise HostError(f"its host function calls {missing[0]}, which only a machine with a GPU can answer")
        self._parameters = tuple(parameters)
        target = llvm.Target.from_default_triple().create_target_machine(jit=True)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self._load, self._function = (self._engine.get_function_address(name) for name in (load, function))
        if not self._load or not self._function:
            raise HostError(f"its host half has no function {function}")

    def record(self, arguments: Callable[[Sequence[int]], Sequence[bytes]], number: int) -> Recorded:
        """Run it, and return its launch; ``arguments`` gives what is passed for the addresses of that many buffers.

        Raises ``HostError`` where it fails, or launches more or less than one kernel.
        """
        first, second = (self._run(arguments([base + _APART * i for i in range(number)])) for base in (_FIRST, _SECOND))
        return dataclasses.replace(first, addresses=_addresses(first, second, number))

    def _run(self, arguments: Sequence[bytes]) -> Recorded:
        kept = [ctypes.create_string_buffer(each, max(len(each), ADDRESS_BYTES)) for each in arguments]
        status = ctypes.c_int(0)
        packed = (ctypes.c_void_p * (len(kept) + 1))(*map(ctypes.addressof, kept), ctypes.addressof(status))
        library = ctypes.c_void_p(0)
        with self._recorder.lock:
            recorder = self._recorder
            recorder.names, recorder.launches, recorder.error = [], [], ""
            recorder.parameters = self._parameters
            _call_load(self._load, library)
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._function)(ctypes.addressof(packed))
            launches, error = recorder.launches, recorder.error
        if error:
            raise HostError(error)
        if status.value:
            raise HostError(f"its host function ended with {status.value}")
        if len(launches) != 1:
            raise HostError(f"its host function launches {len(launches)} kernels: give each a host function of its own")
        return launches[0]


def _call_load(function: int, library: ctypes.c_void_p) -> None:
    """Call what looks up the kernels: with a place of a place of the library, and one for what it returns."""
    first, status = ctypes.c_void_p(ctypes.addressof(library)), ctypes.c_int(0)
    packed = (ctypes.c_void_p * 2)(ctypes.addressof(first), ctypes.addressof(status))
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(ctypes.addressof(packed))


def _addresses(first: Recorded, second: Recorded, number: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return at which byte of each parameter the address of which buffer stands, which is where two runs differ."""
    if dataclasses.replace(first, parameters=()) != dataclasses.replace(second, parameters=()):
        raise HostError("the size of its launch depends on where its buffers lie")
    return tuple(tuple(_differences(*pair, number)) for pair in zip(first.parameters, second.parameters, strict=True))


def _differences(one: bytes, other: bytes, number: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, len(one), ADDRESS_BYTES):
        words = [each[offset : offset + ADDRESS_BYTES] for each in (one, other)]
        if words[0] == words[1]:
            continue
        buffer, again = (_buffer_of(word, base) for word, base in zip(words, (_FIRST, _SECOND), strict=True))
        if buffer is None or buffer != again or buffer >= number:
            raise HostError("its host function computes with an address; a request passes where a buffer begins")
        yield offset, buffer


def _buffer_of(word: bytes, base: int) -> int | None:
    if len(word) != ADDRESS_BYTES:
        return None
    number, rest = divmod(int.from_bytes(word, "little") - base, _APART)
    return number if not rest and number >= 0 else None


def undefined_names(code: bytes) -> Iterator[str]:
    """Yield the names that an ELF object of 64 bits needs from elsewhere."""
    start, size, count = struct.unpack_from("<Q", code, 0x28)[0], *struct.unpack_from("<HH", code, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, start + i * size) for i in range(count)]
    for kind, offset, length, link in ((each[1], each[4], each[5], each[6]) for each in sections):
        if kind != 2:  # a table of symbols
            continue
        names = sections[link][4]
        for place in range(offset + 24, offset + length, 24):
            name, _, _, section = struct.unpack_from("<IBBH", code, place)
            if section == 0:
                yield code[names + name : code.index(b"\0", names + name)].decode()
