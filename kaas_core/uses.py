"""How a request uses its buffers, which decides what is loaded, zeroed and stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kaas_core.request import Access, BufferSpec, Request, buffer_arguments


@dataclass(slots=True)
class Use:
    """How the kernels use one buffer. The first launch that names it decides how it starts; its uses there count together."""

    first_kernel: int
    reads_first: bool
    """A use in the first launch reads: the buffer is loaded, unless ephemeral."""
    temporary: bool
    """All uses in the first launch are ``TEMPORARY``: the buffer is ephemeral."""
    first_write: tuple[int, int] | None
    """Index of the kernel and of its argument that writes first. A written buffer that is not ephemeral is stored."""

    @property
    def writes(self) -> bool:
        """Whether some launch writes it."""
        return self.first_write is not None

    def replaces_value(self, spec: BufferSpec) -> bool:
        """Whether storing makes the buffer the key's whole value, rather than a range of it with the rest kept."""
        return not self.reads_first and spec.offset_bytes == 0


def buffer_uses(request: Request) -> dict[str, Use]:
    """Return the use of every buffer that a kernel names, by name, in the order of first use."""
    uses: dict[str, Use] = {}
    for index, kernel in enumerate(request.kernels):
        uses_here = ((position, use) for position, argument in enumerate(kernel.arguments) for use in buffer_arguments(argument))
        for position, argument in uses_here:
            access = argument.access
            use = uses.get(argument.buffer)
            if use is None:
                use = uses[argument.buffer] = Use(index, reads_first=False, temporary=True, first_write=None)
            if use.first_kernel == index:
                use.reads_first |= access.reads
                use.temporary &= access is Access.TEMPORARY
            if use.first_write is None and access.writes:
                use.first_write = (index, position)
    return uses


def with_implied_ephemeral(request: Request) -> Request:
    """Return the request with every buffer that starts as ``TEMPORARY`` marked as ephemeral, which both wire forms imply."""
    uses = buffer_uses(request)
    implied = {name for name, use in uses.items() if use.temporary}
    if all(spec.ephemeral for spec in request.buffers if spec.name in implied):
        return request
    return replace(
        request,
        buffers=tuple(replace(spec, ephemeral=True) if spec.name in implied else spec for spec in request.buffers),
    )


def write_conflicts(writes: Iterable[tuple[BufferSpec, bool]]) -> Iterator[tuple[BufferSpec, BufferSpec]]:
    """Yield pairs of stored buffers whose writes meet in one key.

    ``writes`` pairs each stored buffer with whether it replaces the key's whole value, which meets every other write of the key.
    """
    by_key: dict[str, list[tuple[BufferSpec, bool]]] = {}
    for spec, whole in writes:
        by_key.setdefault(spec.store_key, []).append((spec, whole))
    for same_key in by_key.values():
        if len(same_key) == 1:
            continue
        same_key.sort(key=lambda write: (not write[1], write[0].offset_bytes))
        previous, whole = same_key[0]
        for spec, _ in same_key[1:]:
            if whole or spec.offset_bytes < previous.offset_bytes + previous.size_bytes:
                yield previous, spec
            if not whole and spec.offset_bytes + spec.size_bytes > previous.offset_bytes + previous.size_bytes:
                previous = spec
