"""The rule of what stays in device memory, beside least recently used and beside what could be reached at best."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kaasd.worker.residency import KEPT_ORDER, MAX_REMEMBERED, NoRoomError, Residency

SIZE = 100
KEYS = 60


def loads(limit: int, trace: Sequence[int]) -> int:
    """Return how often something is loaded when each use is one request."""
    residency: Residency[int] = Residency(limit)
    loaded = 0
    for key in trace:
        if not residency.use(key):
            residency.make_room(SIZE)
            residency.add(key, SIZE, 1.0)
            loaded += 1
        residency.release(key)
        assert residency.held_bytes <= limit
    return loaded


def lru_loads(limit: int, trace: Sequence[int]) -> int:
    """The same under the least recently used policy."""
    held: OrderedDict[int, None] = OrderedDict()
    loaded = 0
    for key in trace:
        if key not in held:
            loaded += 1
            if (len(held) + 1) * SIZE > limit:
                held.popitem(last=False)
        held[key] = None
        held.move_to_end(key)
    return loaded


def fewest_loads(limit: int, trace: Sequence[int]) -> int:
    """The same for one who knows the future (Bélády)."""
    following = [0] * len(trace)
    seen: dict[int, int] = {}
    for index in reversed(range(len(trace))):
        following[index] = seen.get(trace[index], len(trace) * 2)
        seen[trace[index]] = index
    held: dict[int, int] = {}
    loaded = 0
    for index, key in enumerate(trace):
        if key not in held:
            loaded += 1
            if (len(held) + 1) * SIZE > limit:
                del held[max(held, key=held.__getitem__)]
        held[key] = following[index]
    return loaded


@pytest.mark.parametrize("share", [0.5, 0.9, 1.1, 1.5, 2, 4])
def test_a_cyclic_sweep_loses_no_more_than_it_must(share: float) -> None:
    limit = round(KEYS * SIZE / share)
    trace = [key for _ in range(20) for key in range(KEYS)]
    assert loads(limit, trace) <= 1.05 * fewest_loads(limit, trace)
    if share > 1:
        assert lru_loads(limit, trace) == len(trace)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.1, 1.5, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_random_uses_hit_as_often_as_what_is_held_is_asked_for(share: float, seed: int) -> None:
    rng = random.Random(seed)
    trace = [rng.randrange(KEYS) for _ in range(4000)]
    expected = max(0.0, 1 - 1 / share) * len(trace) + KEYS
    assert loads(round(KEYS * SIZE / share), trace) <= 1.08 * expected


@pytest.mark.parametrize("seed", range(3))
def test_what_is_asked_for_often_stays(seed: int) -> None:
    rng = random.Random(seed)
    trace = rng.choices(range(KEYS), [1 / (key + 1) for key in range(KEYS)], k=4000)
    limit = KEYS * SIZE // 2
    assert loads(limit, trace) <= lru_loads(limit, trace)


def test_a_scan_pushes_out_nothing_that_comes_often() -> None:
    hot = list(range(8))
    scan = [key for start in range(100, 400, 3) for key in (*hot, start, start + 1, start + 2)]
    assert loads(10 * SIZE, scan) == len(hot) + 300
    assert lru_loads(10 * SIZE, scan) == len(scan)


def test_a_new_working_set_replaces_the_old_one() -> None:
    old, new = list(range(10)), list(range(100, 110))
    trace = old * 20 + new * 20
    assert loads(10 * SIZE, trace) <= 10 + 5 * 10


def test_what_is_dear_to_bring_back_stays_longer() -> None:
    residency: Residency[str] = Residency(300)
    for key, cost in (("dear", 3.0), ("cheap", 1.0), ("middle", 2.0)):
        residency.add(key, 100, cost)
        residency.release(key)
    assert residency.evict(1) == ["cheap"]
    assert residency.evict(101) == ["middle", "dear"]


def test_what_is_awaited_goes_last_and_of_that_what_is_wanted_latest() -> None:
    residency: Residency[str] = Residency(600)
    for key in ("a", "b", "c", "d", "e", "f", "d", "e", "f"):
        if not residency.use(key):
            residency.add(key, 100, 1.0)
        residency.release(key)
    residency.awaits("first", ["a", "b"])
    residency.awaits("second", ["a", "x", "c"])
    assert residency.evict(200) == ["f", "e"]
    assert residency.evict(200) == ["d", "c"]
    residency.awaits("second", ["b", "a"])
    assert residency.evict(1) == ["b"]
    residency.awaits("first", [])
    residency.add("c", 100, 1.0)
    residency.release("c")
    assert residency.evict(1) == ["c"]
    residency.awaits("second", [])
    residency.awaits("second", [])
    assert residency.evict(1) == ["a"]


def test_many_holdings_go_in_the_same_order_one_by_one() -> None:
    many = 4 * KEPT_ORDER
    gone: list[int] = []
    residency: Residency[int] = Residency(many * SIZE)
    for key in range(many):
        residency.add(key, SIZE, float(key))
        residency.release(key)
    expected = residency.evict(3 * SIZE)
    assert expected == [0, 1, 2]
    residency.use(3)
    residency.release(3)
    residency.awaits("somebody", [4])
    for _ in range(8):
        gone += residency.evict(SIZE)
    assert gone == list(range(5, 13))


def test_who_knows_what_comes_next_loads_less() -> None:
    rng = random.Random(3)
    trace = [rng.randrange(KEYS) for _ in range(3000)]
    limit, known = KEYS * SIZE // 2, 16
    residency: Residency[int] = Residency(limit)
    loaded = 0
    for index, key in enumerate(trace):
        residency.awaits("the next", trace[index + 1 : index + 1 + known])
        if not residency.use(key):
            residency.make_room(SIZE)
            residency.add(key, SIZE, 1.0)
            loaded += 1
        residency.release(key)
    assert fewest_loads(limit, trace) < loaded < 0.8 * loads(limit, trace)


def test_pinned_holdings_stay_and_too_little_room_is_said() -> None:
    residency: Residency[str] = Residency(300)
    residency.add("a", 200, 1.0)
    residency.add("b", 100, 1.0)
    residency.release("b")
    with pytest.raises(NoRoomError) as error:
        residency.make_room(101)
    assert (error.value.asked_bytes, error.value.in_use_bytes, error.value.limit_bytes) == (101, 200, 300)
    assert "b" in residency
    assert residency.make_room(100) == ["b"]
    assert residency.evict(1000) == []
    assert residency.use("a")
    assert residency.release("a")
    assert not residency.release("a")
    assert residency.make_room(300) == ["a"]


def test_a_renamed_holding_leaves_its_key_free() -> None:
    residency: Residency[str] = Residency(300)
    residency.add("a", 100, 1.0)
    residency.rename("a", "old a")
    residency.add("a", 150, 1.0)
    assert (residency.held_bytes, residency.in_use_bytes) == (250, 250)
    residency.release("old a")
    residency.remove("old a")
    assert (residency.held_bytes, residency.in_use_bytes) == (150, 150)


def test_memory_of_what_has_gone_is_bounded() -> None:
    residency: Residency[int] = Residency(SIZE)
    for key in range(MAX_REMEMBERED + 10):
        residency.make_room(SIZE)
        residency.add(key, SIZE, 1.0)
        residency.release(key)
    assert len(residency._remembered) == MAX_REMEMBERED


class Model(RuleBasedStateMachine):
    """Any order of events keeps the sums right, the limit kept, and what is pinned held."""

    def __init__(self) -> None:
        super().__init__()
        self.residency: Residency[int] = Residency(1000)
        self.sizes: dict[int, int] = {}
        self.pins: dict[int, int] = {}

    @rule(key=st.integers(0, 9), size=st.integers(1, 600), cost=st.floats(0, 10))
    def want(self, key: int, size: int, cost: float) -> None:
        if self.residency.use(key):
            assert key in self.sizes
            self.pins[key] += 1
            return
        assert key not in self.sizes
        in_use = sum(self.sizes[held] for held, pins in self.pins.items() if pins)
        try:
            gone = self.residency.make_room(size)
        except NoRoomError:
            assert in_use + size > 1000
            return
        assert in_use + size <= 1000
        self.forget(gone)
        self.residency.add(key, size, cost)
        self.sizes[key], self.pins[key] = size, 1

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key, pins in self.pins.items() if pins)))
        self.pins[key] -= 1
        assert self.residency.release(key) == (self.pins[key] > 0)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.sizes)))
        self.residency.remove(key)
        del self.sizes[key], self.pins[key]

    @rule(who=st.sampled_from("ab"), keys=st.lists(st.integers(0, 9), max_size=4))
    def await_some(self, who: str, keys: list[int]) -> None:
        self.residency.awaits(who, keys)

    @rule(size=st.integers(0, 1500))
    def evict(self, size: int) -> None:
        idle = sum(self.sizes[key] for key, pins in self.pins.items() if not pins)
        gone = self.residency.evict(size)
        freed = sum(self.sizes[key] for key in gone)
        assert freed >= min(size, idle)
        self.forget(gone)

    def forget(self, gone: list[int]) -> None:
        for key in gone:
            assert self.pins.pop(key) == 0
            del self.sizes[key]

    @invariant()
    def sums(self) -> None:
        assert self.residency.held_bytes == sum(self.sizes.values()) <= 1000
        assert self.residency.in_use_bytes == sum(self.sizes[key] for key, pins in self.pins.items() if pins)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
