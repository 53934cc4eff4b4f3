"""The small copies and zeroings before and behind a run's launches, made by launches of ``moveKern`` of its own."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kaasd.devices.base import DeviceBuffer
from kaasd.devices.cuda.buffers import CudaBuffer, Word
from kaasd.devices.cuda.context import PinnedMemory
from kaasd.devices.cuda.kernel import CudaKernel
from kaasd.devices.cuda.launch import KernelCall
from kaasd.devices.trace import SpanKind

TIMED = True
"""Whether runs are timed by the GPU's clock, and not by the host's around them. That costs two writes to host memory and, for a
run that has nothing to move before its launches, a launch."""
RANGES = 32
"""Of one launch of ``moveKern``; see ``move.cu``."""
_THREADS = 256
_BYTES_A_BLOCK = _THREADS * 16 * 4
_MAX_BLOCKS = 1024
Move = tuple[int, int, int]
"""Address to write, address to read or 0 for zeros, size in bytes. 16 bytes and more begin at a multiple of 16, both."""


def move_calls(
    kernel: CudaKernel, moves: Iterable[Move], arrived: int = 0, flag: int = 0, begun: int = 0, ended: int = 0
) -> Iterator[KernelCall]:
    """Yield the launches of ``moveKern`` that make ``moves``; behind the last, the word at ``flag`` becomes 1.

    ``arrived`` is a word of zero for its use alone. The GPU's time goes to ``begun`` as the first begins, and to ``ended`` just
    before the flag is set. Where there is a flag, or ``begun``, there is at least one launch.
    """
    left = list(moves)
    while left or flag or begun:
        batch, left = left[:RANGES], left[RANGES:]
        blocks = max(1, min(_MAX_BLOCKS, max((-(-size // _BYTES_A_BLOCK) for _, _, size in batch), default=1)))
        table = b"".join(struct.pack("<QQQ", *move) for move in batch).ljust(24 * RANGES, b"\0")
        is_last = not left and flag
        signals = [value.to_bytes(8, "little") for value in ((arrived, flag, ended) if is_last else (0, 0, begun))]
        begun = 0
        yield KernelCall(kernel, (blocks, max(1, len(batch)), 1), (_THREADS, 1, 1), 0, [table, *signals])
        if not left:
            return


_ALIGNMENT = 256
_CONTROL_BYTES = 256


@dataclass(frozen=True, slots=True)
class Moved:
    """What happens to small buffers before and behind the launches."""

    uploads: Sequence[DeviceBuffer]
    zeroed: Sequence[DeviceBuffer]
    downloads: Sequence[DeviceBuffer]
    variables: Sequence[Move] = ()
    """What gives the module variables their initial values."""

    @property
    def host_bytes(self) -> int:
        """How much host memory ``Moves`` takes."""
        return _CONTROL_BYTES + sum(_aligned(buffer.size_bytes) for buffer in (*self.uploads, *self.downloads))


class Moves:
    """The launches of ``moveKern`` that make these moves, any number of times, and the host memory that they read and write."""

    def __init__(self, mover: CudaKernel, moved: Moved, memory: PinnedMemory, arrived: Word) -> None:
        """``mover`` is ``moveKern``, ``arrived`` a zeroed word for it; ``memory`` has ``host_bytes``."""
        self._mover = mover
        self._moved = moved
        self._begun, self._ended = (memory.address + 8, memory.address + 16) if TIMED else (0, 0)
        self._signal = arrived.address, memory.address, 0, self._ended
        self.flag = ctypes.c_uint32.from_address(memory.address)
        """Becomes 1 behind the last move."""
        self.times = (ctypes.c_uint64 * 2).from_address(memory.address + 8)
        """Become the GPU's times of the first move, and behind the last, if that is ``TIMED``."""
        views, addresses = [], []
        position = _CONTROL_BYTES
        for buffer in (*moved.uploads, *moved.downloads):
            views.append(memory.view[position : position + buffer.size_bytes])
            addresses.append(memory.address + position)
            position += _aligned(buffer.size_bytes)
        count = len(moved.uploads)
        self.uploads = views[:count]
        """What is copied to each buffer."""
        self.downloads = [view.toreadonly() for view in views[count:]]
        """What was copied from each buffer."""
        self._moves_before = [(_address(to), of, to.size_bytes) for to, of in zip(moved.uploads, addresses, strict=False)]
        self._moves_before += [(_address(buffer), 0, buffer.size_bytes) for buffer in moved.zeroed]
        self._moves_behind = [
            (to, _address(of), of.size_bytes) for to, of in zip(addresses[count:], moved.downloads, strict=True)
        ]
        self.before = list(move_calls(mover, [*moved.variables, *self._moves_before], begun=self._begun))
        """What fills module variables and buffers, in as few launches as can be, and notes when the run begins."""
        self.behind = list(move_calls(mover, self._moves_behind, *self._signal))
        """What copies back, and sets the flag."""

    def variables(self) -> Iterator[KernelCall]:
        """Yield what fills the module variables alone, and notes when the run begins."""
        return move_calls(self._mover, self._moved.variables, begun=self._begun)

    def singly_before(self) -> Iterator[tuple[SpanKind, DeviceBuffer, KernelCall]]:
        """Yield what fills each buffer, a launch each, for a run whose moves are to be told apart."""
        for buffer, move in zip((*self._moved.uploads, *self._moved.zeroed), self._moves_before, strict=True):
            kind = SpanKind.COPY_TO_DEVICE if move[1] else SpanKind.ZERO
            yield from ((kind, buffer, call) for call in move_calls(self._mover, [move]))

    def singly_behind(self) -> Iterator[tuple[SpanKind, DeviceBuffer, KernelCall]]:
        """Yield what copies each buffer back."""
        for buffer, move in zip(self._moved.downloads, self._moves_behind, strict=True):
            yield from ((SpanKind.COPY_TO_HOST, buffer, call) for call in move_calls(self._mover, [move]))

    def end(self) -> Iterator[KernelCall]:
        """Yield what sets the flag, behind those."""
        return move_calls(self._mover, (), *self._signal)


def _address(buffer: DeviceBuffer) -> int:
    assert isinstance(buffer, CudaBuffer)
    return buffer.address


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
