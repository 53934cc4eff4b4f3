"""Checks a request as far as that needs neither its device nor its libraries; the same for both wire forms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from kaas_core.array_form import form_problems
from kaas_core.request import (
    ADDRESS_BYTES,
    BufferArgument,
    BufferSpec,
    Dim3,
    KernelSpec,
    Literal,
    Packed,
    Request,
    TextureArgument,
    buffer_arguments,
    literal_problem,
)
from kaas_core.texture import texture_problems
from kaas_core.uses import Use, buffer_uses, write_conflicts
from kaas_core.violations import Violations, shown

MAX_KEY_BYTES = 400
"""Of UTF-8; also of a buffer's name, which is its key by default. LMDB takes 511 bytes."""
MAX_KERNELS = 10_000
MAX_BUFFERS = 10_000
MAX_ARGUMENTS = 4096
"""CUDA's parameter space is 32764 bytes, which 4096 addresses already exceed."""
MAX_PARAMETER_BYTES = 32_764
"""Of a kernel's parameters together, from PTX 8.1 and sm_70 on; before, they are 4352."""
MAX_ALL_ARGUMENTS = 100_000
"""Of a request's kernels together; buffers in packed arguments count too."""
MAX_LIBRARY_PATH_BYTES = 4096
"""Linux' PATH_MAX."""

_CONTENT_ID = re.compile(r"sha256:[0-9a-f]{64}")
_U32_MAX = 2**32 - 1
_U64_MAX = 2**64 - 1
_DIM_MAX = 2**31 - 1


def validate(request: Request) -> None:
    """Check a request. Raises ``InvalidRequestError`` with every violation.

    ``make_plan`` checks kernels' signatures and the device's limits; that keys and libraries exist is found out later.
    """
    found = Violations()
    _integer(found, "iterations", request.iterations, 1, _U32_MAX)
    if not request.kernels:
        found.add("kernels", "at least one kernel is needed")
    if _count(found, "kernels", len(request.kernels), MAX_KERNELS) and _count(
        found, "buffers", len(request.buffers), MAX_BUFFERS
    ):
        _check_buffers(found, request)
        known = {spec.name: spec.size_bytes for spec in request.buffers}
        for index, kernel in enumerate(request.kernels):
            _check_kernel(found, f"kernels[{index}]", kernel, known)
    found.raise_if_any()


def key_problem(key: str) -> str | None:
    """Return what is wrong with a store's key, or None."""
    if not key:
        return "must not be empty"
    return _text_problem(key, MAX_KEY_BYTES)


def is_content_id(reference: str) -> bool:
    """Return whether a library's reference is ``sha256:`` and 64 lower-case hex digits."""
    return _CONTENT_ID.fullmatch(reference) is not None


def _check_kernel(found: Violations, path: str, kernel: KernelSpec, known: Mapping[str, int]) -> None:
    if problem := _library_problem(kernel.library):
        found.add(f"{path}.library", problem)
    if problem := "must not be empty" if not kernel.name else _text_problem(kernel.name, None, "\0"):
        found.add(f"{path}.name", problem)
    _check_dim3(found, f"{path}.grid", kernel.grid)
    _check_dim3(found, f"{path}.block", kernel.block)
    if kernel.cluster is not None:
        _check_dim3(found, f"{path}.cluster", kernel.cluster)
    _integer(found, f"{path}.shared_memory_bytes", kernel.shared_memory_bytes, 0, _U32_MAX)
    if not _count(found, f"{path}.arguments", len(kernel.arguments), MAX_ARGUMENTS):
        return
    for index, argument in enumerate(kernel.arguments):
        place = f"{path}.arguments[{index}]"
        if isinstance(argument, Literal):
            if problem := literal_problem(argument):
                found.add(place, problem)
        elif isinstance(argument, BufferArgument):
            _check_use(found, place, argument, known)
        elif isinstance(argument, TextureArgument):
            _check_texture(found, place, argument, known)
        else:
            _check_packed(found, place, argument, known)
    _check_surfaces(found, path, kernel)
    size = sum(len(argument.data) for argument in kernel.arguments if isinstance(argument, Packed))
    if size > MAX_PARAMETER_BYTES:
        found.add(
            f"{path}.arguments", f"all parameters of a kernel together have at most {MAX_PARAMETER_BYTES} bytes, not {size}"
        )


def _check_use(found: Violations, path: str, argument: BufferArgument, known: Mapping[str, int]) -> None:
    if argument.buffer not in known:
        found.add(path, f"the request has no buffer {shown(argument.buffer)}")


def _check_texture(found: Violations, path: str, argument: TextureArgument, known: Mapping[str, int]) -> None:
    _check_use(found, path, BufferArgument(argument.buffer, argument.access), known)
    texture = argument.texture
    integers = [
        _integer(found, f"{path}.{field}", value, low, _U32_MAX)
        for field, value, low in (
            ("channels", texture.channels, 1),
            ("layers", texture.layers, 0),
            *((f"extent[{axis}]", number, 1) for axis, number in enumerate(texture.extent)),
        )
    ]
    if all(integers):
        for field, problem in texture_problems(texture, known.get(argument.buffer), argument.is_surface):
            found.add(f"{path}.{field}" if field else path, problem)


def _check_surfaces(found: Violations, path: str, kernel: KernelSpec) -> None:
    """Check that what is a surface of a launch is nothing else of it: what that would read, no device says."""
    surfaces = [
        (index, argument.buffer)
        for index, argument in enumerate(kernel.arguments)
        if isinstance(argument, TextureArgument) and argument.is_surface
    ]
    if not surfaces:
        return
    uses = Counter(use.buffer for argument in kernel.arguments for use in buffer_arguments(argument))
    for index, name in surfaces:
        if uses[name] > 1:
            found.add(
                f"{path}.arguments[{index}]", f"buffer {shown(name)} is a surface here, and no other argument may be it too"
            )


def _check_packed(found: Violations, path: str, packed: Packed, known: Mapping[str, int]) -> None:
    if not packed.data:
        found.add(f"{path}.packed", "must not be empty")
    if not _count(found, f"{path}.buffers", len(packed.buffers), MAX_ARGUMENTS):
        return
    at: dict[int, int] = {}
    for index, buffer in enumerate(packed.buffers):
        place, offset = f"{path}.buffers[{index}]", buffer.offset_bytes
        _check_use(found, place, buffer.argument, known)
        if not _integer(found, f"{place}.offset_bytes", offset, 0, _U32_MAX):
            continue
        if offset % ADDRESS_BYTES:
            found.add(f"{place}.offset_bytes", f"an address is aligned to {ADDRESS_BYTES} bytes, which {offset} is not")
        elif offset + ADDRESS_BYTES > len(packed.data):
            found.add(
                f"{place}.offset_bytes",
                f"an address of {ADDRESS_BYTES} bytes at {offset} ends behind the {len(packed.data)} bytes",
            )
        first = at.setdefault(offset, index)
        if first != index:
            found.add(f"{place}.offset_bytes", f"buffers[{first}] has its address there")


def _check_buffers(found: Violations, request: Request) -> None:
    uses = buffer_uses(request)
    first_of_name: dict[str, int] = {}
    for index, spec in enumerate(request.buffers):
        path = f"buffers[{index}]"
        _check_buffer(found, path, spec)
        first = first_of_name.setdefault(spec.name, index)
        if first != index:
            found.add(f"{path}.name", f"{shown(spec.name)} is already the name of buffers[{first}]")
        use = uses.get(spec.name)
        if use is None:
            continue
        if spec.constant and use.first_write:
            kernel, argument = use.first_write
            found.add(f"kernels[{kernel}].arguments[{argument}]", f"buffer {shown(spec.name)} is constant and cannot be written")
        if use.temporary and not spec.ephemeral:
            found.add(path, f"buffer {shown(spec.name)} is first used as temporary, so it must be ephemeral")
    if not found:
        _check_writes(found, request, uses, first_of_name)


def _check_buffer(found: Violations, path: str, spec: BufferSpec) -> None:
    if problem := key_problem(spec.name):
        found.add(f"{path}.name", problem)
    # The name says whose size this is: a buffer given in place has no index that the caller knows.
    owner = f"buffer {shown(spec.name)}: "
    sized = _integer(found, f"{path}.size", spec.size_bytes, 1, _U64_MAX, owner)
    placed = _integer(found, f"{path}.offset", spec.offset_bytes, 0, _U64_MAX, owner)
    if sized and placed and spec.offset_bytes + spec.size_bytes > _U64_MAX:
        found.add(f"{path}.offset", f"{owner}offset plus size must be less than 2^64")
    if spec.key:
        if problem := key_problem(spec.key):
            found.add(f"{path}.key", owner + problem)
        if spec.ephemeral:
            found.add(f"{path}.key", f"{owner}an ephemeral buffer never touches the store and has no key")
    for field, problem in form_problems(spec.dtype, spec.shape, spec.fortran_order, spec.size_bytes if sized else None):
        found.add(f"{path}.{field}", owner + problem)


def _check_writes(found: Violations, request: Request, uses: dict[str, Use], index_of: dict[str, int]) -> None:
    stored = [
        (spec, use.replaces_value(spec))
        for spec in request.buffers
        if not spec.ephemeral and (use := uses.get(spec.name)) is not None and use.writes
    ]
    for one, other in write_conflicts(stored):
        found.add(
            f"buffers[{index_of[other.name]}].key",
            f"buffers {shown(one.name)} and {shown(other.name)} write the same bytes of key {shown(other.store_key)}",
        )


def _check_dim3(found: Violations, path: str, size: Dim3) -> None:
    for axis, number in enumerate(size):
        _integer(found, f"{path}[{axis}]", number, 1, _DIM_MAX)


def _integer(found: Violations, path: str, value: int, low: int, high: int, owner: str = "") -> bool:
    """Return whether ``value`` is an integer in that range; a bool is not."""
    if type(value) is int and low <= value <= high:
        return True
    if type(value) is not int:
        found.add(path, f"{owner}must be an integer, not {shown(value)}")
    elif value < low:
        found.add(path, f"{owner}must be at least {low}, not {shown(value)}")
    else:
        found.add(path, f"{owner}must be at most {high}, not {shown(value)}")
    return False


def _count(found: Violations, path: str, count: int, most: int) -> bool:
    if count > most:
        found.add(path, f"at most {most} are allowed, not {count}")
    return count <= most


def _library_problem(library: str) -> str | None:
    if library.startswith("/"):
        return _text_problem(library, MAX_LIBRARY_PATH_BYTES, "\0")
    if not is_content_id(library):
        return f"must be an absolute path, or sha256: and 64 lower-case hex digits, not {shown(library)}"
    return None


def _text_problem(text: str, most_bytes: int | None, forbidden: str = "") -> str | None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return f"is not valid UTF-8: {shown(text)}"
    if most_bytes is not None and size > most_bytes:
        return f"at most {most_bytes} bytes of UTF-8 are allowed, not {size}"
    if forbidden and forbidden in text:
        return "must not contain a NUL character"
    return None
