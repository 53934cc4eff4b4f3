"""The JSON form of a request: the original format of KaaS and our own, read in any mixture; written in our own.

The original format names buffers where they are used, with all their attributes; here a request has a list of them. So every
place that names a buffer is a *mention*, and the mentions of one name are merged into one ``BufferSpec``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kaas_core.json_arguments import argument_to_json, paired_argument, read_argument, read_literal
from kaas_core.json_buffers import BufferMentions
from kaas_core.json_reader import ObjectReader, boolean, decode, integer, items, text
from kaas_core.request import Access, Argument, BufferArgument, BufferSpec, Dim3, KernelSpec, Request, buffer_arguments
from kaas_core.uses import with_implied_ephemeral
from kaas_core.validation import validate
from kaas_core.violations import Violations

_ITERATIONS = ("iterations", "nIter")
_NAME = ("name", "kernel")
_GRID = ("grid", "nGrid", "gridDim")
_BLOCK = ("block", "nBlock", "blockDim")
_SHARED = ("shared_memory_bytes", "sharedSize")
_USES = {"inputs": Access.INPUT, "temps": Access.TEMPORARY, "outputs": Access.OUTPUT}
"""The original format's lists of buffers by use: its first version has only these; in its last they repeat ``arguments``."""
_REQUEST_FIELDS = ("kernels", "buffers", *_ITERATIONS)
_KERNEL_FIELDS = (
    *("library", *_NAME, *_GRID, *_BLOCK, *_SHARED, "cluster", "cooperative", "programmatic_dependent_launch"),
    *("literals", "arguments", "type_list", *_USES),
)


def request_from_json(source: str | bytes | dict[str, object]) -> Request:
    """Return the validated request, defaults filled in. Raises ``InvalidRequestError`` with every violation.

    ``source`` is JSON, bytes being UTF-8, or what a JSON parser made of it.
    """
    value = decode(source) if isinstance(source, (str, bytes)) else source
    found = Violations()
    request = _request(found, value)
    found.raise_if_any()
    validate(request)
    return request


def request_to_json(request: Request) -> dict[str, object]:
    """Return our own form of a valid request, for ``json.dumps``; default values are left out."""
    fields: dict[str, object] = {"kernels": [_kernel_to_json(kernel) for kernel in request.kernels]}
    if request.buffers:
        fields["buffers"] = [_buffer_to_json(spec) for spec in request.buffers]
    if request.iterations != 1:
        fields["iterations"] = request.iterations
    return fields


def _request(found: Violations, value: object) -> Request:
    reader = ObjectReader(found, "", value, _REQUEST_FIELDS, "a request")
    mentions = BufferMentions(found)
    for index, buffer in enumerate(reader.optional(("buffers",), items) or ()):
        mentions.mention(f"buffers[{index}]", buffer)
    kernels = tuple(
        _kernel(found, f"kernels[{index}]", kernel, mentions)
        for index, kernel in enumerate(reader.required(("kernels",), items) or ())
    )
    iterations = reader.optional(_ITERATIONS, integer)
    request = Request(kernels, mentions.specs(), 1 if iterations is None else iterations)
    return _without_idle_keys(with_implied_ephemeral(request))


def _without_idle_keys(request: Request) -> Request:
    """Drop the keys of ephemeral buffers that only repeat the name: the original writes a key for every buffer."""
    return replace(
        request,
        buffers=tuple(replace(spec, key="") if spec.ephemeral and spec.key == spec.name else spec for spec in request.buffers),
    )


def _kernel(found: Violations, path: str, value: object, mentions: BufferMentions) -> KernelSpec:
    reader = ObjectReader(found, path, value, _KERNEL_FIELDS, "a kernel")
    literals = [
        read_literal(found, f"{path}.literals[{index}]", literal)
        for index, literal in enumerate(reader.optional(("literals",), items) or ())
    ]
    buffers_by_use = {field: _buffers_of(reader, field, mentions) for field in _USES if field in reader}
    if "arguments" in reader:
        arguments = _arguments(found, reader, mentions)
        _check_repeated(found, path, buffers_by_use, arguments)
    else:
        arguments = _arguments_by_use(buffers_by_use)
        if "type_list" in reader:
            found.add(f"{path}.type_list", "is given without arguments")
    return KernelSpec(
        library=reader.required(("library",), text) or "",
        name=reader.required(_NAME, text) or "",
        grid=reader.required(_GRID, _dim3) or (1, 1, 1),
        block=reader.required(_BLOCK, _dim3) or (1, 1, 1),
        arguments=(*literals, *arguments),
        shared_memory_bytes=reader.optional(_SHARED, integer) or 0,
        cluster=reader.optional(("cluster",), _dim3),
        cooperative=reader.optional(("cooperative",), boolean) or False,
        programmatic_dependent_launch=reader.optional(("programmatic_dependent_launch",), boolean) or False,
    )


def _arguments(found: Violations, reader: ObjectReader, mentions: BufferMentions) -> list[Argument]:
    elements = reader.optional(("arguments",), items) or []
    path = f"{reader.path}.arguments"
    letters = reader.optional(("type_list",), items)
    if letters is None:
        return [
            argument
            for index, element in enumerate(elements)
            if (argument := paired_argument(found, f"{path}[{index}]", element, mentions)) is not None
        ]
    if len(letters) != len(elements):
        found.add(f"{reader.path}.type_list", f"has {len(letters)} entries for {len(elements)} arguments")
    return [
        argument
        for index, (element, letter) in enumerate(zip(elements, letters, strict=False))
        if (argument := read_argument(found, f"{path}[{index}]", element, letter, mentions)) is not None
    ]


def _buffers_of(reader: ObjectReader, field: str, mentions: BufferMentions) -> list[str]:
    elements = enumerate(reader.optional((field,), items) or ())
    names = (mentions.mention(f"{reader.path}.{field}[{index}]", element) for index, element in elements)
    return [name for name in names if name is not None]


def _arguments_by_use(buffers_by_use: Mapping[str, list[str]]) -> list[Argument]:
    """Return the arguments in the order of the original's first version: inputs, temporaries, outputs that are not inputs."""
    outputs = set(buffers_by_use.get("outputs", ()))
    inputs = set(buffers_by_use.get("inputs", ()))
    return [
        BufferArgument(name, Access.INOUT if field == "inputs" and name in outputs else access)
        for field, access in _USES.items()
        for name in buffers_by_use.get(field, ())
        if not (field == "outputs" and name in inputs)
    ]


def _check_repeated(found: Violations, path: str, buffers_by_use: Mapping[str, list[str]], arguments: list[Argument]) -> None:
    for field, names in buffers_by_use.items():
        letter = _USES[field].value
        expected = {use.buffer for each in arguments for use in buffer_arguments(each) if letter in use.access.value}
        if set(names) != expected:
            found.add(f"{path}.{field}", "must name the same buffers as the arguments")


def _dim3(found: Violations, path: str, value: object) -> Dim3 | None:
    if not isinstance(value, (list, tuple)):
        x = integer(found, path, value)
        return None if x is None else (x, 1, 1)
    if not 1 <= len(value) <= 3:
        found.add(path, f"must have one to three numbers, not {len(value)}")
        return None
    x, y, z = (
        integer(found, f"{path}[{axis}]", value[axis]) if axis < len(value) else 1  # as CUDA's dim3
        for axis in range(3)
    )
    return None if x is None or y is None or z is None else (x, y, z)


def _kernel_to_json(kernel: KernelSpec) -> dict[str, object]:
    fields: dict[str, object] = {
        "library": kernel.library,
        "name": kernel.name,
        "grid": list(kernel.grid),
        "block": list(kernel.block),
    }
    if kernel.shared_memory_bytes:
        fields["shared_memory_bytes"] = kernel.shared_memory_bytes
    if kernel.cluster is not None:
        fields["cluster"] = list(kernel.cluster)
    if kernel.cooperative:
        fields["cooperative"] = True
    if kernel.programmatic_dependent_launch:
        fields["programmatic_dependent_launch"] = True
    fields["arguments"] = [argument_to_json(argument) for argument in kernel.arguments]
    return fields


def _buffer_to_json(spec: BufferSpec) -> dict[str, object]:
    fields: dict[str, object] = {"name": spec.name, "size": spec.size_bytes}
    if spec.key:
        fields["key"] = spec.key
    if spec.offset_bytes:
        fields["offset"] = spec.offset_bytes
    if spec.ephemeral:
        fields["ephemeral"] = True
    if spec.constant:
        fields["const"] = True
    if spec.dtype:
        fields["dtype"] = spec.dtype
    if spec.shape:
        fields["shape"] = list(spec.shape)
    if spec.fortran_order:
        fields["fortran_order"] = True
    return fields
