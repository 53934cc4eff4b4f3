"""How the original describes a request: kernels with their buffers, and the dense form that it sends about.

Names, arguments and their order are the original's. What a request means is said in ``lowering``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from kaas_core.request import FLOAT_TYPES, INTEGER_TYPES

Name: TypeAlias = Hashable
"""Of a buffer; usually text, or bytes that ``putObj`` returned."""

builtins = {name: Path(__file__).parent / name / "cutlass.cubin" for name in ("cutlass", "complexCutlass")}
"""The original's own libraries, to be recognised: what they take is made by host code of theirs, so they cannot run here."""


class KaasError(Exception):
    """A request that cannot be."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class bufferSpec:
    """A buffer as a kernel's argument. Two are equal if they have the same name."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self, name: Name, size: int, offset: int = 0, key: Name = None, ephemeral: bool = False, const: bool = False
    ) -> None:
        """``size`` is in bytes; so is ``offset``, where the buffer starts in the value of ``key``, by default that of ``name``.

        An ``ephemeral`` buffer has no value. ``const`` promises that the value does not change.
        """
        self.name = name
        self.size = size
        self.offset = offset
        self.key = name if key is None else key
        self.ephemeral = ephemeral
        self.const = const

    @classmethod
    def fromDict(cls, d: Mapping[str, Any]) -> bufferSpec:
        """Return what ``toDict`` returned, or a dictionary of the same form whose defaults are left out."""
        optional = {field: d[field] for field in ("offset", "key", "ephemeral", "const") if field in d}
        return cls(d["name"], d["size"], **optional)

    def toDict(self) -> dict[str, Any]:
        """Return all that is said of it."""
        return _dense_buffer(self)._asdict()

    def __eq__(self, other: object) -> bool:
        return self.name == other.name if isinstance(other, bufferSpec) else NotImplemented


class literalSpec:
    """A number that a kernel takes by value."""

    def __init__(self, t: str, val: float) -> None:
        """``t`` is a letter of Python's ``struct``. Raises ``KaasError`` for any other."""
        if t not in INTEGER_TYPES | FLOAT_TYPES:
            raise KaasError(f"there are no literals of type {t!r}")
        self.t = t
        self.val = val

    @classmethod
    def fromDict(cls, d: Mapping[str, Any]) -> literalSpec:
        """Return what ``toDict`` returned."""
        return cls(d["type"], d["val"])

    def toDict(self) -> dict[str, Any]:
        """Return its type and value."""
        return {"type": self.t, "val": self.val}

    def __str__(self) -> str:
        return f"Literal {self.t} {self.val}"


class kernelSpec:
    """One launch of a kernel. Two are equal if they have the same name, the library's and the kernel's."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        library: str | Path,
        kernel: str,
        gridDim: Sequence[int],
        blockDim: Sequence[int],
        sharedSize: int = 0,
        literals: Sequence[literalSpec] = (),
        arguments: Sequence[tuple[bufferSpec, str]] = (),
    ) -> None:
        """``arguments`` are buffers with their use, ``i``, ``o``, ``io`` or ``t``; the kernel takes the literals before them.

        Raises ``KaasError`` for one of the ``builtins``.
        """
        if library in builtins.values():
            raise KaasError(f"{Path(library).parent.name}: the original's own libraries are not here, only those of its users")
        self.libPath = Path(library).resolve()
        self.kernel = kernel
        self.name = f"{self.libPath.stem}.{kernel}"
        self.gridDim = gridDim
        self.blockDim = blockDim
        self.sharedSize = sharedSize
        self.literals = list(literals)
        self.arguments = [buffer for buffer, _ in arguments]
        self.type_list = [use for _, use in arguments]
        self.inputs, self.outputs, self.temps = (
            [buffer for buffer, use in arguments if letter in use] for letter in ("i", "o", "t")
        )
        self.uniqueOutputs = [buffer for buffer in self.outputs if buffer not in self.inputs]

    @classmethod
    def fromDict(cls, d: Mapping[str, Any]) -> kernelSpec:
        """Return what ``toDict`` returned."""
        buffers = map(bufferSpec.fromDict, d.get("arguments", ()))
        return cls(
            d["library"],
            d["kernel"],
            tuple(d["gridDim"]),
            tuple(d["blockDim"]),
            d["sharedSize"],
            [literalSpec.fromDict(literal) for literal in d.get("literals", ())],
            list(zip(buffers, d.get("type_list", ()), strict=True)),
        )

    def toDict(self) -> dict[str, Any]:
        """Return it in the original's JSON form."""
        return {
            "library": str(self.libPath),
            "kernel": self.kernel,
            "gridDim": self.gridDim,
            "blockDim": self.blockDim,
            "sharedSize": self.sharedSize,
            "literals": [literal.toDict() for literal in self.literals],
            "arguments": [buffer.toDict() for buffer in self.arguments],
            "type_list": list(self.type_list),
            "inputs": [buffer.toDict() for buffer in self.inputs],
            "temps": [buffer.toDict() for buffer in self.temps],
            "outputs": [buffer.toDict() for buffer in self.outputs],
        }

    def __eq__(self, other: object) -> bool:
        return self.name == other.name if isinstance(other, kernelSpec) else NotImplemented


class denseBuf(NamedTuple):
    """A ``bufferSpec``."""

    name: Name
    size: int
    offset: int
    key: Name
    ephemeral: bool
    const: bool


class denseLiteral(NamedTuple):
    """A ``literalSpec``."""

    dtype: str
    val: float


class denseKern(NamedTuple):
    """A ``kernelSpec``."""

    name: str
    library: str
    """An absolute path."""
    kernel: str
    gridDim: Sequence[int]
    blockDim: Sequence[int]
    sharedSize: int
    literals: list[denseLiteral]
    arguments: list[Name]
    """Buffers by name."""
    ioTypes: list[str]
    """Their uses, in the same order."""


class kaasReq:
    """A request: kernels in order, ``nIter`` times, and the buffers that they name."""

    def __init__(self, kernels: Iterable[kernelSpec], nIter: int = 1) -> None:
        """What is said of a buffer is what the first kernel that names it says."""
        self.kernels: list[denseKern] = []
        self.bufferMap: dict[Name, denseBuf] = {}
        self.nIter = nIter
        for kernel in kernels:
            for buffer in kernel.arguments:
                self.bufferMap.setdefault(buffer.name, _dense_buffer(buffer))
            self.kernels.append(_dense_kernel(kernel))

    @classmethod
    def fromDict(cls, d: Mapping[str, Any]) -> kaasReq:
        """Return what ``toDict`` returned."""
        return cls([kernelSpec.fromDict(kernel) for kernel in d["kernels"]], nIter=d.get("nIter", 1))

    def toDict(self) -> dict[str, Any]:
        """Return it in the original's JSON form."""
        return {"kernels": [self._spec(kernel).toDict() for kernel in self.kernels], "nIter": self.nIter}

    def reKey(self, keyMap: Mapping[Name, Name]) -> None:
        """Give buffers other keys, by name. Raises ``KeyError`` for a buffer that there is not."""
        for name, key in keyMap.items():
            self.bufferMap[name] = self.bufferMap[name]._replace(key=key)

    def _spec(self, kernel: denseKern) -> kernelSpec:
        buffers = [bufferSpec(**self.bufferMap[name]._asdict()) for name in kernel.arguments]
        return kernelSpec(
            kernel.library,
            kernel.kernel,
            kernel.gridDim,
            kernel.blockDim,
            kernel.sharedSize,
            [literalSpec(*literal) for literal in kernel.literals],
            list(zip(buffers, kernel.ioTypes, strict=True)),
        )


kaasReqDense = kaasReq
"""What the original called it before it had only this form."""


def _dense_buffer(spec: bufferSpec) -> denseBuf:
    return denseBuf(spec.name, spec.size, spec.offset, spec.key, spec.ephemeral, spec.const)


def _dense_kernel(spec: kernelSpec) -> denseKern:
    return denseKern(
        spec.name,
        str(spec.libPath),
        spec.kernel,
        spec.gridDim,
        spec.blockDim,
        spec.sharedSize,
        [denseLiteral(literal.t, literal.val) for literal in spec.literals],
        [buffer.name for buffer in spec.arguments],
        spec.type_list,
    )
