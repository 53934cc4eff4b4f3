"""Modules: GPU code loaded by the driver, with what it tells of each kernel."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import Any

from cuda.bindings import driver

from kaas_core.ptx_entries import Entry, entries_of
from kaas_core.request import Dim3
from kaasd.devices.base import undone_on_failure
from kaasd.devices.cuda.buffers import CudaBuffer
from kaasd.devices.cuda.context import CudaContext
from kaasd.devices.cuda.driver import Check, CudaError, check
from kaasd.devices.cuda.kernel import CudaKernel, LoadedCode, Unit, find_variables
from kaasd.devices.cuda.wrapper import HostCode, HostFunction
from kaasd.libraries import UnsupportedLibrary
from kaasd.libraries.image import Image, ptx_version, read_image
from kaasd.libraries.variables import Form, forms
from kaasd.request.device_checks import DeviceProperties, KernelAttributes

_LOG_BYTES = 8192


class CudaModule:
    """A library's code, one module of the driver for each of its units."""

    def __init__(
        self,
        data: bytes,
        properties: DeviceProperties,
        host_code: HostCode,
        context: CudaContext,
        forget: Callable[[CudaModule], None],
        allocate: Callable[[int], CudaBuffer],
        compiled: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> None:
        """Load ``data`` for a device of these properties; its host code, when it is asked for, is loaded by ``host_code``.

        ``compiled`` are cubins, by the SHA-256 of the form of a unit in place of which each is loaded.

        When it has closed it is given to ``forget``. ``allocate`` is the device's.

        Raises ``UnsupportedLibrary``, ``OutOfMemory``, ``DeviceLost``.
        """
        self._data = data
        self._max_threads_per_block = properties.max_threads_per_block
        self._host_code = host_code
        image = read_image(data)
        self.host_functions = image.host_functions
        required_blocks, entries = _required_blocks(image), entries_of(image.ptx)
        kernels: dict[str, CudaKernel] = {}
        with undone_on_failure() as undo:
            undo.callback(forget, self)
            for code in image.units:
                form, loaded = _load(code, image, properties.compute_capability, context, compiled)
                with undone_on_failure() as undo_unit:
                    undo_unit.callback(loaded.unload, context.release)
                    found = _kernels(loaded.module, required_blocks, entries, context.check)
                    unit = None
                    if form.variables:
                        undo_unit.pop_all()  # it is the unit's
                        unit = Unit(form, loaded, {each.name: each for each, _ in found}, context, allocate)
                        undo_unit.callback(unit.close)
                    undo.push(undo_unit.pop_all())
                for attributes, function in found:
                    # A template's kernel may be in several units, always the same.
                    kernels.setdefault(attributes.name, CudaKernel(function, attributes, loaded, unit))
        self._undo = undo
        self._kernels = kernels

    @property
    def kernels(self) -> Mapping[str, CudaKernel]:
        """Every entry point, by name."""
        return self._kernels

    def load_host_function(self, name: str) -> HostFunction:
        """Load the host code, unless it is, and return a function that it exports. Raises ``UnsupportedLibrary``."""
        return HostFunction(name, self._host_code.function(self._data, name), self._max_threads_per_block)

    def close(self) -> None:
        """Unload. Idempotent."""
        self._undo.close()


def _load(
    unit: bytes, image: Image, capability: tuple[int, int], context: CudaContext, compiled: Mapping[bytes, bytes]
) -> tuple[Form, LoadedCode]:
    """Return the form of a unit that was loaded, and what the driver made of it."""
    for form in forms(unit, 10 * capability[0] + capability[1]):
        if compiled:
            form = form._replace(code=compiled.get(sha256(form.code).digest(), form.code))
        loaded = _load_form(form.code, image, capability, context.check)
        with undone_on_failure() as undo:
            undo.callback(loaded.unload, context.release)
            if find_variables(loaded.module, form.variables, context.check) is not None:
                undo.pop_all()
                return form, loaded
        undo.close()
    names = ", ".join(sorted(form.variables)[:20])
    raise UnsupportedLibrary(
        f"its kernels write module variables, which start each request anew, and the driver cannot tell where all of these are: "
        f"{names}; declare them outside functions, and bring the library as PTX"
    )


def _load_form(code: bytes, image: Image, capability: tuple[int, int], check: Check) -> LoadedCode:
    try:
        return LoadedCode.load(code, check)
    except CudaError as error:
        raise UnsupportedLibrary(_explain(error, _log_of(code), image, capability)) from error


def _log_of(code: bytes) -> str:
    """Return what the driver's compiler says of code that the driver has refused: loading for one context alone, it tells."""
    option = driver.CUjit_option
    log = bytearray(_LOG_BYTES)
    options = {option.CU_JIT_ERROR_LOG_BUFFER: log, option.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES: len(log)}
    status, *loaded = driver.cuModuleLoadDataEx(code, len(options), list(options), list(options.values()))
    if not status:
        driver.cuModuleUnload(*loaded)
    return _one_line(log)


def _one_line(log: bytearray) -> str:
    return " ".join(log.partition(b"\0")[0].decode(errors="replace").split())


def _explain(error: CudaError, log: str, image: Image, capability: tuple[int, int]) -> str:
    """Say for a person why the driver refused a library."""
    if error.name == "CUDA_ERROR_UNSUPPORTED_PTX_VERSION":
        asked = ".".join(map(str, max(ptx_version(text) for text in image.ptx)))
        known = re.search(r"current version is '([\d.]+)'", log)
        major, minor = divmod(check(driver.cuDriverGetVersion), 1000)
        limit = f"takes PTX up to version {known[1]}" if known else "takes older PTX only"
        return (
            f"PTX version {asked} is newer than this driver: its CUDA {major}.{minor // 10} {limit}; "
            "compile with an older toolkit, or to a cubin"
        )
    if error.name == "CUDA_ERROR_NO_BINARY_FOR_GPU":
        has = ", ".join(sorted({f"sm_{cubin.sm}" for cubin in image.cubins})) or "none"
        ptx = "with PTX for a newer GPU" if image.ptx else "no PTX"
        return f"no code for this GPU of compute capability {capability[0]}.{capability[1]}: cubins for {has}, {ptx}"
    return f"{error}: {log}" if log else str(error)


def _kernels(
    module: Any, required_blocks: Mapping[str, Dim3], entries: Mapping[str, Entry], check: Check
) -> list[tuple[KernelAttributes, Any]]:
    """Return the entry points of a module of the driver."""
    try:
        count = check(driver.cuModuleGetFunctionCount, module)
        functions = check(driver.cuModuleEnumerateFunctions, count, module) if count else []
        return [(_attributes(function, required_blocks, entries, check), function) for function in functions]
    except CudaError as error:
        raise UnsupportedLibrary(f"the driver cannot load its kernels: {error}") from error


def _attributes(
    function: Any, required_blocks: Mapping[str, Dim3], entries: Mapping[str, Entry], check: Check
) -> KernelAttributes:
    attribute = driver.CUfunction_attribute
    check(driver.cuFuncLoad, function)  # modules load lazily, and what is not loaded has no attributes
    name = check(driver.cuFuncGetName, function).decode()
    sizes = tuple(_parameter_sizes(function, check))
    entry = entries.get(name)
    declared = () if entry is None or entry.parameters is None else entry.parameters
    if len(declared) != len(sizes):  # PTX for another architecture than the code that was loaded
        declared = ()

    def get(which: Any) -> int:
        value: int = check(driver.cuFuncGetAttribute, which, function)
        return value

    cluster = (
        get(attribute.CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH),
        get(attribute.CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT),
        get(attribute.CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH),
    )
    return KernelAttributes(
        name=name,
        parameter_size_bytes=sizes,
        static_shared_memory_bytes=get(attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES),
        max_threads_per_block=get(attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK),
        required_block=required_blocks.get(name),
        parameter_alignment_bytes=tuple(each.alignment_bytes for each in declared),
        parameter_names=tuple(each.name for each in declared),
        cluster=cluster if all(cluster) else None,
        needs_cluster=not all(cluster) and bool(get(attribute.CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET)),
    )


def _parameter_sizes(function: Any, check: Check) -> list[int]:
    """Return the size of each parameter. The driver tells no count, but an index past the last is an invalid value."""
    sizes: list[int] = []
    while True:
        try:
            _, size = check(driver.cuFuncGetParamInfo, function, len(sizes))
        except CudaError as error:
            if error.name == "CUDA_ERROR_INVALID_VALUE":
                return sizes
            raise
        sizes.append(size)


_REQUIRED_BLOCK = re.compile(r"\.entry\s+([\w$%]+)[^{]*?\.reqntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")


def _required_blocks(image: Image) -> dict[str, Dim3]:
    """Return the kernels that have a ``.reqntid``, by name. The driver does not tell, so a library without PTX has none here,
    and a launch of another size is refused by the driver."""
    found = (match for text in image.ptx for match in _REQUIRED_BLOCK.finditer(text))
    return {match[1]: (int(match[2]), int(match[3] or 1), int(match[4] or 1)) for match in found}
