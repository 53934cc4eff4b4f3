"""What is held of a device's memory: allocated, shared, dropped and freed, on a device that counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest

from kaasd.devices.base import DeviceBuffer, OutOfMemory
from kaasd.devices.emulator.options import EmulatorOptions
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.worker.device_memory import DeviceMemory, Holding, copy_cost_s
from kaasd.worker.residency import NoRoomError, Residency

SIZE = 1000
LIMIT = 10 * SIZE


class CountingDevice(EmulatedDevice):
    """Has memory for 20 buffers, and knows how much of it is taken."""

    def __init__(self) -> None:
        super().__init__(EmulatorOptions(memory_bytes=20 * SIZE))
        self.taken_bytes = 0

    def allocate(self, size_bytes: int) -> DeviceBuffer:
        if self.taken_bytes + size_bytes > 20 * SIZE:
            raise OutOfMemory("no room")
        buffer = super().allocate(size_bytes)
        self.taken_bytes += size_bytes
        close = buffer.close

        def count_and_close() -> None:
            self.taken_bytes -= size_bytes
            close()

        buffer.close = count_and_close  # type: ignore[method-assign]
        return buffer


@pytest.fixture
def device() -> Iterator[CountingDevice]:
    with closing(CountingDevice()) as opened:
        yield opened


@pytest.fixture
def memory(device: CountingDevice) -> Iterator[DeviceMemory]:
    opened = DeviceMemory(device, LIMIT)
    yield opened
    opened.close()
    assert device.taken_bytes == opened.held_bytes == 0
    opened.close()


def make(memory: DeviceMemory, key: str, *sizes: int) -> Holding:
    return memory.make(key, sizes or [SIZE], 1.0, lambda buffers: Holding(key, buffers))


def test_it_is_used_again_under_its_key(memory: DeviceMemory) -> None:
    made = make(memory, "a", SIZE, 2 * SIZE)
    assert "a" in memory
    assert [buffer.size_bytes for buffer in made.buffers] == [SIZE, 2 * SIZE]
    assert (memory.held_bytes, memory.in_use_bytes, memory.limit_bytes) == (3 * SIZE, 3 * SIZE, LIMIT)
    assert not memory.is_shared(made)
    assert memory.use("a") is made
    assert memory.is_shared(made)
    memory.release(made)
    memory.release(made)
    assert (memory.held_bytes, memory.in_use_bytes) == (3 * SIZE, 0)
    assert memory.use("b") is None
    assert "b" not in memory


def test_what_nobody_uses_makes_room(memory: DeviceMemory, device: CountingDevice) -> None:
    for key in "abcdefghij":
        memory.release(make(memory, key))
    assert memory.held_bytes == device.taken_bytes == LIMIT
    large = make(memory, "large", 9 * SIZE)
    assert memory.held_bytes == device.taken_bytes == LIMIT
    assert sum(key in memory for key in "abcdefghij") == 1
    with pytest.raises(NoRoomError):
        make(memory, "more", 2 * SIZE)
    assert sum(key in memory for key in "abcdefghij") == 1
    memory.release(large)


def test_without_keeping_all_goes_at_once(device: CountingDevice) -> None:
    memory = DeviceMemory(device, LIMIT, unused_limit_bytes=0)
    made = make(memory, "a")
    memory.use("a")
    memory.release(made)
    assert "a" in memory
    memory.release(made)
    assert "a" not in memory
    assert device.taken_bytes == 0


def test_of_what_nobody_uses_so_much_is_held(device: CountingDevice) -> None:
    memory = DeviceMemory(device, LIMIT, unused_limit_bytes=2 * SIZE)
    made = [make(memory, key) for key in "abc"]
    assert memory.held_bytes == 3 * SIZE
    for each in made:
        memory.release(each)
    assert sum(key in memory for key in "abc") == 2
    assert memory.held_bytes == device.taken_bytes == 2 * SIZE


def test_a_holding_under_another_key(memory: DeviceMemory) -> None:
    made = make(memory, "a")
    memory.rename(made, "b")
    assert ("a" in memory, "b" in memory) == (False, True)
    memory.release(made)
    assert memory.use("b") is made


def test_of_what_is_expected_soon_the_oldest_goes_first() -> None:
    residency: Residency[str] = Residency(20 * SIZE)
    for key in "abcdefgh":
        residency.add(f"new {key}", SIZE, 1.0)
        residency.rename(f"new {key}", key, interval=2.0)
        residency.release(key)
    residency.add("once", SIZE, 1.0)
    residency.release("once")
    assert residency.evict(4 * SIZE) == ["once", "a", "b", "c"]


def test_what_takes_no_room_is_not_looked_at_for_room() -> None:
    residency: Residency[str] = Residency(2 * SIZE)
    residency.add("nothing", 0, 1.0)
    residency.add("a", SIZE, 1.0)
    residency.release("nothing")
    residency.release("a")
    assert residency.make_room(2 * SIZE) == ["a"]


def test_what_is_dropped_goes_when_nobody_uses_it_and_frees_its_key_at_once(memory: DeviceMemory, device: CountingDevice) -> None:
    old = make(memory, "a")
    memory.drop(old)
    memory.drop(old)
    assert "a" not in memory
    new = make(memory, "a", 2 * SIZE)
    other = make(memory, "b")
    memory.drop(other)
    assert device.taken_bytes == 4 * SIZE
    memory.release(other)
    memory.release(old)
    assert memory.use("a") is new
    assert device.taken_bytes == 2 * SIZE
    memory.release(new)
    memory.release(new)
    memory.drop(new)
    assert device.taken_bytes == 0


def test_what_is_taken_beside_the_buffers_counts(memory: DeviceMemory, device: CountingDevice) -> None:
    held = memory.make("a", [SIZE], 1.0, lambda buffers: Holding("a", buffers), 2 * SIZE)
    assert (memory.held_bytes, memory.in_use_bytes, device.taken_bytes) == (3 * SIZE, 3 * SIZE, SIZE)
    with pytest.raises(NoRoomError):
        memory.make("b", [memory.limit_bytes - 2 * SIZE], 1.0, lambda buffers: Holding("b", buffers))
    memory.release(held)
    memory.drop(held)
    assert memory.held_bytes == device.taken_bytes == 0


def test_what_cannot_be_built_leaves_nothing(memory: DeviceMemory, device: CountingDevice) -> None:
    def fail(buffers: Sequence[DeviceBuffer]) -> Holding:
        raise OutOfMemory("no graph")

    with pytest.raises(OutOfMemory, match="no graph"):
        memory.make("a", [SIZE, SIZE], 1.0, fail)
    assert device.taken_bytes == memory.held_bytes == 0
    assert "a" not in memory
    memory.release(make(memory, "a"))


def test_what_the_device_lacks_is_freed_as_far_as_it_is_needed(device: CountingDevice) -> None:
    memory = DeviceMemory(device, 1 << 40)
    for key in "abcdefghijklmnopqrst":
        memory.release(make(memory, key))
    pinned = memory.use("t")
    made = make(memory, "new", SIZE, 4 * SIZE)
    assert device.taken_bytes == memory.held_bytes == 20 * SIZE
    memory.release(make(memory, "all", 14 * SIZE))
    with pytest.raises(OutOfMemory):
        make(memory, "more", 15 * SIZE)
    assert memory.held_bytes == device.taken_bytes == 6 * SIZE
    assert memory.use("t") is pinned
    assert memory.use("new") is made
    memory.close()
    assert device.taken_bytes == 0


def test_a_copy_costs_its_start_and_its_bytes() -> None:
    assert copy_cost_s(0) == pytest.approx(20e-6)
    assert copy_cost_s(25_000_000_000) == pytest.approx(1.00002)
