"""Memory of the process that stands for memory of the device."""

from __future__ import annotations

import pytest

from kaasd.devices.emulator.runtime.host_memory import FREED_KEPT_BYTES, FreedBlocks, HostMemory

LARGE = 4 << 20


def freed(address: int, size: int) -> HostMemory:
    """Return new memory of this size, which lies where memory lay that was freed."""
    memory = HostMemory(size)
    assert memory.address == address
    return memory


def test_memory_that_is_used_again_is_zeros() -> None:
    first = HostMemory(LARGE)
    first.view[:] = b"\1" * LARGE
    first.close()
    first.close()
    again = freed(first.address, LARGE)
    assert bytes(again.view) == bytes(LARGE)
    again.close()


def test_memory_of_another_size_is_not_used_again() -> None:
    first = HostMemory(LARGE)
    first.close()
    other = HostMemory(2 * LARGE)
    assert other.address != first.address
    other.close()


@pytest.mark.parametrize("size", [LARGE, 8192 << 2])
def test_memory_is_not_freed_while_a_view_of_it_is_used(size: int) -> None:
    memory = HostMemory(size)
    part = memory.view[:16]
    with pytest.raises(BufferError):
        memory.close()
    other = HostMemory(size)
    assert other.address != memory.address
    part.release()
    memory.close()
    other.close()


def test_no_more_is_kept_than_was_said() -> None:
    blocks = [HostMemory(LARGE) for _ in range(2 * FREED_KEPT_BYTES // LARGE)]
    kept = FreedBlocks(3 * LARGE)
    for block in blocks:
        block.view.release()
        kept.give(block._owner)  # type: ignore[arg-type]
    taken = [kept.take(LARGE) for _ in range(4)]
    assert [block is not None for block in taken] == [True, True, True, False]
    assert taken[0] is blocks[-1]._owner


def test_a_block_that_is_half_of_all_that_is_kept_is_freed() -> None:
    kept = FreedBlocks(LARGE)
    block = HostMemory(LARGE)
    block.view.release()
    kept.give(block._owner)  # type: ignore[arg-type]
    assert kept.take(LARGE) is None
