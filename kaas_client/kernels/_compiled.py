"""What a compiler made of a kernel's source, and launches of it, of which arrays may still tell the sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from typing import Any, ClassVar, Protocol

from cachetools import LRUCache

from kaas_client import _dtypes
from kaas_client.arguments import BufferSpec, Packed, Size, TextureSpec, numbers
from kaas_client.builders import Kernel
from kaas_client.forms import Form, form_of
from kaas_client.kernels._passing import Argument, EntryPoint, LaunchPassing, Parameter, Passed, Situation
from kaas_core.errors import InvalidRequestError
from kaas_core.request import Dim3
from kaas_core.violations import shown

DEFAULT_TARGET = "sm_80"
"""Of what is compiled before any device is known."""
MOST_KEPT_BYTES = 64 << 20
"""Of images, the ones that were used last, for sources that come again."""


class CompileError(Exception):
    """A source that its compiler refuses, with what it said."""


class LayoutError(CompileError):
    """The image's entry point is not what this package expects of its compiler: nothing was guessed, and nothing runs."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a compiler made for one target."""

    image: bytes
    entries: Mapping[str, EntryPoint]
    """By the name in the source."""
    file_name: str
    ptx_version: int
    """87 for 8.7; 0 for machine code alone."""
    target: str
    """Such as ``sm_90a``."""
    compiler: str
    """With its version."""


class Source(Protocol):
    """What a compiler makes an image of."""

    has_own_block: bool
    """Numbers in square brackets are the grid alone, as for the compiler itself."""

    def key(self) -> Sequence[object]:
        """Return what decides what is made, beside target and PTX version; each of it has a ``repr`` of its content."""

    def compile(self, target: str, ptx_version: int, entry: str) -> Image:
        """Compile it for an architecture, in PTX of that version at most (0: as new as the compiler's), so that it has ``entry``.

        ``entry`` is asked for only where the image for no entry has none of that name. Raises ``CompileError``.
        """


class Compiled:
    """Kernels that are compiled when that is needed: for the server's devices, when a launch of one is first called.

    ``compiled["name"]`` is one of several kernels; ``compiled[grid, block](…)`` is a launch. Other attributes are those of the
    target that it was compiled for, ``sm_80`` where no other was asked for.
    """

    _kept: LRUCache[str, Image] = LRUCache(MOST_KEPT_BYTES, lambda image: len(image.image))
    _lock = Lock()

    def __init__(self, source: Source, entry: str = "", image: Image | None = None) -> None:
        """``entry`` is the name of the kernel, where it is one of several; ``image`` is what was made of it already."""
        self._source = source
        self._entry = entry
        self._image = image

    def compile(self, *, target: str = DEFAULT_TARGET, ptx_version: int = 0) -> Compiled:
        """Return it compiled for an architecture, in PTX of at most ``ptx_version`` (87 for 8.7; 0: the compiler's newest).

        Raises ``CompileError``.
        """
        image = self._kept_image(target, ptx_version, "")
        if self._entry and self._entry not in image.entries:  # A template, or a function of C++: it is compiled when it is named.
            image = self._kept_image(target, ptx_version, self._entry)
        return Compiled(self._source, self._entry, image)

    def _kept_image(self, target: str, ptx_version: int, entry: str) -> Image:
        key = sha256(repr((*self._source.key(), target, ptx_version, entry)).encode()).hexdigest()
        with self._lock:
            image = self._kept.get(key)
        if image is None:
            image = self._source.compile(target, ptx_version, entry)
            with self._lock:
                if len(image.image) <= MOST_KEPT_BYTES:
                    self._kept[key] = image
        return image

    def __getitem__(self, key: Any) -> Any:
        """Return the kernel of this name, or a launcher of a grid and a block: ``compiled["scale"][(4, 2), 256](…)``.

        A size is one number or up to three. The block may be left out where the kernel has one only. Where the compiler chooses
        it, as Triton and Warp do, ``compiled[4, 2]`` is a grid of two dimensions, as it is theirs.
        """
        if isinstance(key, str):
            return Compiled(self._source, key, self._image if self._image and key in self._image.entries else None)
        if self._source.has_own_block and not (isinstance(key, tuple) and any(isinstance(each, Sequence) for each in key)):
            return self.launcher(key)
        return self.launcher(*(key if isinstance(key, tuple) and len(key) == 2 else (key,)))

    def __call__(self, *arguments: Argument) -> Launch:
        """Return a launch of a kernel whose compiler chooses grid and block, as CuTe DSL does."""
        return self.launcher(None)(*arguments)

    __iter__: ClassVar[None] = None
    """It is no sequence, whatever its square brackets take."""

    def launcher(self, grid: Any, block: Any = None, *, shared_memory_bytes: int | None = None) -> Launcher:
        """Return what makes launches of this size; ``shared_memory_bytes`` is dynamic, by default what the compiler says."""
        return Launcher(self, grid, block, shared_memory_bytes)

    @property
    def is_made(self) -> bool:
        """Whether it was compiled, for whatever target; a launch of it is of that image then."""
        return self._image is not None

    @property
    def made(self) -> Image:
        """What it was compiled to. Compiles it where that was not done. Raises ``CompileError``."""
        made = self if self._image is not None else self.compile()
        assert made._image is not None
        return made._image

    def entry_point(self) -> EntryPoint:
        """Return the kernel that it is. Raises ``CompileError`` where there is not that one, or there are several."""
        entries = self.made.entries
        if self._entry in entries:
            return entries[self._entry]
        if not self._entry and len(entries) == 1:
            return next(iter(entries.values()))
        names = ", ".join(sorted(entries)) or "none"
        several = 'say which kernel, as in compiled["name"]'
        what = f"there is no kernel {self._entry!r}" if self._entry else several
        raise CompileError(f"{self.made.file_name}: {what}; it has {names}")

    @property
    def image(self) -> bytes:
        """What is uploaded: PTX or machine code."""
        return self.made.image

    @property
    def ptx_version(self) -> int:
        """Of its PTX: 87 for 8.7; 0 for machine code alone."""
        return self.made.ptx_version

    @property
    def target(self) -> str:
        """The architecture that it is for, such as ``sm_90a``."""
        return self.made.target

    @property
    def compiler(self) -> str:
        """What made it, with its version."""
        return self.made.compiler

    @property
    def entry(self) -> str:
        """The kernel's name in the image."""
        return self.entry_point().name

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Its parameters, in order; none where the image does not tell of them."""
        return self.entry_point().parameters or ()

    @property
    def block(self) -> Dim3 | None:
        """Threads of a block, where it has one size only."""
        return self.entry_point().block

    @property
    def shared_memory_bytes(self) -> int:
        """Dynamic shared memory, as far as its compiler tells."""
        return self.entry_point().shared_memory_bytes

    @property
    def cluster(self) -> Dim3 | None:
        """Blocks of a cluster, where it needs them."""
        return self.entry_point().cluster


class Launcher:
    """Makes launches of one size; call it with the kernel's arguments."""

    def __init__(self, compiled: Compiled, grid: Size | None, block: Size | None, shared_memory_bytes: int | None) -> None:
        self._compiled = compiled
        self._sizes = grid, block
        self._shared_memory_bytes = shared_memory_bytes

    def __call__(
        self,
        *arguments: Argument,
        cluster: Size | None = None,
        cooperative: bool = False,
        programmatic_dependent_launch: bool = False,
    ) -> Launch:
        """Return the launch, to be bound by a client. Nothing is compiled yet. The keywords are those of ``Kernel``."""
        return Launch(
            self._compiled,
            *self._sizes,
            arguments,
            self._shared_memory_bytes,
            cluster,
            cooperative,
            programmatic_dependent_launch,
        )


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel, of which arrays may still tell the sizes."""

    compiled: Compiled
    grid: Size | None
    """None: as its compiler chooses."""
    block: Size | None
    arguments: tuple[Argument, ...]
    shared_memory_bytes: int | None = None
    cluster: Size | None = None
    """None: what the compiler says."""
    cooperative: bool = False
    programmatic_dependent_launch: bool = False

    def buffers(self) -> Iterator[BufferSpec]:
        """Yield every mention of a buffer."""
        for argument in self.arguments:
            if isinstance(argument, BufferSpec):
                yield argument
            elif isinstance(argument, TextureSpec):
                yield argument.buffer
            elif isinstance(argument, Packed):
                yield from (buffer for _, buffer in argument.buffers)

    def kernel(self, library: str, forms: Mapping[str, Form], position: int = 0, only_returned: Collection[str] = ()) -> Kernel:
        """Return the launch, which stands at a ``position`` in its request; its image was uploaded as ``library``.

        Buffers that are ``only_returned`` are ephemeral.
        Raises ``InvalidRequestError``, ``TypeError``, ``CompileError``.
        """
        entry, place = self.compiled.entry_point(), f"kernels[{position}]"
        situation = Situation(place, entry.name, (1, 1, 1), (1, 1, 1), (), forms)
        if isinstance(entry.passing, LaunchPassing):
            entry = entry.passing.at_launch(entry, self.arguments, situation)
        grid, block = self._sizes(entry, place)
        if self.grid is not None:
            situation = dataclasses.replace(situation, grid=grid, block=block, dim=tuple(numbers(self.grid)))
        passed = entry.passing.passed(self.arguments, situation)
        if entry.parameters is not None and len(passed) != len(entry.parameters):
            raise InvalidRequestError.at(
                f"{place}.arguments", f"it has {len(entry.parameters)} parameters, and gets {len(passed)}"
            )
        shared = entry.shared_memory_bytes if self.shared_memory_bytes is None else self.shared_memory_bytes
        return Kernel(
            library,
            entry.name,
            grid,
            block,
            [_told(each, forms, only_returned) for each in passed],
            shared,
            cluster=entry.cluster if self.cluster is None else self.cluster,
            cooperative=self.cooperative or entry.cooperative,
            programmatic_dependent_launch=self.programmatic_dependent_launch or entry.programmatic_dependent_launch,
        )

    def _sizes(self, entry: EntryPoint, place: str) -> tuple[Dim3, Dim3]:
        if self.grid is not None and entry.grid is None:
            return entry.passing.sizes(self.grid, self.block, entry, place)
        if self.grid is None and entry.grid is not None and entry.block is not None:
            return entry.grid, entry.block
        words = "say how many blocks there are, as in kernel[grid, block](…)"
        if self.grid is not None:
            words = "the kernel's compiler chooses grid and block: leave them out, as in kernel(…)"
        raise InvalidRequestError.at(f"{place}.grid", words)


def forms_of(launches: Sequence[Launch], arrays: Mapping[str, Form]) -> dict[str, Form]:
    """Return the form of each buffer that has one: as it was declared, and otherwise as an array gives it.

    An array in another order than was declared is sent in that. Raises ``InvalidRequestError`` where it is not what was declared.
    """
    forms: dict[str, Form] = {}
    for launch in launches:
        for buffer in launch.buffers():
            declared = form_of(buffer)
            if declared is None:
                continue
            found = arrays.get(buffer.name, forms.setdefault(buffer.name, declared))
            if (found.dtype, found.shape) != (declared.dtype, declared.shape):
                has, needs = (f"{form.dtype} of shape {list(form.shape)}" for form in (found, declared))
                place = f"buffers[{shown(buffer.name)}]"
                raise InvalidRequestError.at(place, f"an array has {has}, and it is declared as {needs}")
    return {**arrays, **forms}


def only_returned(launches: Sequence[Launch], given: Collection[str], keyed: Collection[str]) -> frozenset[str]:
    """Return the buffers that are written for the caller alone, and never touch the store.

    They have no key, in any mention or of the call (``keyed``), and start from zeros or from what the call has ``given``.
    """
    first: dict[str, BufferSpec] = {}
    written: set[str] = set()
    stored = set(keyed)
    for launch in launches:
        for buffer in launch.buffers():
            first.setdefault(buffer.name, buffer)
            if buffer.access.writes:
                written.add(buffer.name)
            if buffer.key is not None or buffer.offset is not None:
                stored.add(buffer.name)
    return frozenset(name for name in written - stored if name in given or not first[name].access.reads)


def _told(argument: Passed, forms: Mapping[str, Form], ephemeral: Collection[str]) -> Passed:
    """Return an argument whose buffers have the forms that are known, and are ephemeral where they are to be."""
    if isinstance(argument, Packed):
        return Packed(argument.data, tuple((offset, _with_form(buffer, forms, ephemeral)) for offset, buffer in argument.buffers))
    if isinstance(argument, TextureSpec):
        return TextureSpec(_with_form(argument.buffer, forms, ephemeral), argument.texture)
    return _with_form(argument, forms, ephemeral) if isinstance(argument, BufferSpec) else argument


def _with_form(buffer: BufferSpec, forms: Mapping[str, Form], ephemeral: Collection[str]) -> BufferSpec:
    if buffer.name in ephemeral:
        buffer = dataclasses.replace(buffer, ephemeral=True)
    form = forms.get(buffer.name)
    if form is None or buffer.dtype is not None or (buffer.size not in (None, form.size_bytes)):
        return buffer
    return dataclasses.replace(
        buffer,
        size=form.size_bytes,
        dtype=_dtypes.dtype_to_text(form.dtype),
        shape=form.shape,
        fortran_order=form.fortran_order or None,
    )
