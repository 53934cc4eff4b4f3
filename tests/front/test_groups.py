"""The registry of groups, on a real store."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from kaas.v1 import admin_pb2
from kaas_core.errors import (
    DataDamagedError,
    GroupNotFoundError,
    InvalidRequestError,
    NotEnabledError,
)
from kaasd import scheduling
from kaasd.front.grants import Grant, check
from kaasd.front.groups import Groups
from kaasd.front.request_queue import RequestQueue
from kaasd.front.reservations import Reservable
from kaasd.scheduling import Scheduler
from kaasd.scheduling.shares import Shares
from kaasd.store.base import Durability, Namespace, Write
from kaasd.store.lmdb_store import LmdbStore

GIB = 1 << 30


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    with LmdbStore(tmp_path / "store", limit_bytes=16 << 20, durability=Durability.NONE) as opened:
        yield opened


def fixed(name: str, **more: object) -> Grant:
    return check(admin_pb2.Group(name=name, **more), fixed=True)  # type: ignore[arg-type]


def set_group(groups: Groups, name: str, **more: object) -> admin_pb2.Group:
    return asyncio.run(groups.set(admin_pb2.Group(name=name, **more)))  # type: ignore[arg-type]


def fields(call: Callable[[], object]) -> list[str]:
    with pytest.raises(InvalidRequestError) as raised:
        call()
    return [violation.field for violation in raised.value.violations]


class Listener:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[scheduling.Group | str] = []

    def set_group(self, group: scheduling.Group) -> None:
        self.told.append(group)

    def remove_group(self, name: str) -> None:
        self.told.append(name)

    @property
    def waited_ns(self) -> Mapping[str, int]:
        return {"default": 6_000_000}

    def shares(self) -> Mapping[str, Shares]:
        return {told.name: Shares(0.5, 0.25) for told in self.told if isinstance(told, scheduling.Group)}

    def leaving(self) -> list[str]:
        return [told for told in self.told if isinstance(told, str)]

    def use(self, name: str) -> scheduling.GroupUse:
        return scheduling.GroupUse(queued=1, queued_bytes=2, running=3, device_s=1.5, started=4, resident=5)


def test_default_is_there_and_has_no_limits(store: LmdbStore) -> None:
    groups = Groups(store)
    expected = admin_pb2.Group(name="default", share=1, max_region_bytes=4 * GIB)
    assert groups.list() == [expected]
    assert groups.get("default").scheduled == scheduling.Group("default")


def test_what_is_set_is_there_after_a_restart(store: LmdbStore) -> None:
    groups = Groups(store)
    answer = set_group(groups, "a", share=2.5, priority=-3, max_running=1, max_queued=2, max_queued_bytes=3)
    expected = admin_pb2.Group(
        name="a", share=2.5, priority=-3, max_running=1, max_queued=2, max_queued_bytes=3, max_region_bytes=4 * GIB
    )
    assert answer == expected
    for now in (groups, Groups(store)):
        assert now.get("a").message == expected
        assert now.get("a").scheduled == scheduling.Group("a", 2.5, -3, 1, 2, 3)
        assert not now.get("a").fixed
    set_group(groups, "a", max_keys=7)
    assert Groups(store).get("a").message == admin_pb2.Group(name="a", share=1, max_keys=7, max_region_bytes=4 * GIB)


def test_default_can_be_changed(store: LmdbStore) -> None:
    set_group(Groups(store), "default", max_running=2)
    assert Groups(store).get("default").message.max_running == 2


def test_lists_in_order_from_behind_a_name(store: LmdbStore) -> None:
    groups = Groups(store)
    for name in ("c", "a", "e", "b"):
        set_group(groups, name)
    assert [group.name for group in groups.list()] == ["a", "b", "c", "default", "e"]
    assert [group.name for group in groups.list("a", 3)] == ["b", "c", "default"]


def test_a_deleted_group_is_not_there_any_more(store: LmdbStore) -> None:
    groups = Groups(store)
    set_group(groups, "a")
    asyncio.run(groups.delete("a"))
    for now in (groups, Groups(store)):
        with pytest.raises(GroupNotFoundError) as raised:
            now.get("a")
        assert raised.value.metadata == {"group": "a"}
    with pytest.raises(GroupNotFoundError):
        asyncio.run(groups.delete("a"))


def test_a_deleted_group_that_has_requests_still_is_counted(store: LmdbStore) -> None:
    """They run, and ``ListRequests`` has them."""
    groups = Groups(store)
    groups.listen(Listener())
    set_group(groups, "a")
    asyncio.run(groups.delete("a"))
    assert groups.uses().keys() == {"default", "a"}
    assert groups.uses()["a"].running == 3
    with pytest.raises(GroupNotFoundError):
        groups.use("a")


def test_default_cannot_be_deleted(store: LmdbStore) -> None:
    groups = Groups(store, [fixed("default", max_running=1)])
    assert fields(lambda: asyncio.run(groups.delete("default"))) == ["name"]
    assert "default" in groups


@pytest.mark.parametrize("name", ["", "a b", "ä", "a/b", "x" * 65, "a: b"])
def test_a_name_that_cannot_be(store: LmdbStore, name: str) -> None:
    assert fields(lambda: set_group(Groups(store), name)) == ["group.name"]


@pytest.mark.parametrize("share", [-1.0, math.nan, math.inf])
def test_a_share_that_cannot_be(store: LmdbStore, share: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"group\.share: share is .*must be a number above 0"):
        set_group(Groups(store), "a", share=share)


def test_all_that_is_wrong_is_named(store: LmdbStore) -> None:
    assert fields(lambda: set_group(Groups(store), "a b", share=-1)) == ["group.name", "group.share"]


def test_groups_of_the_settings_file_stand_before_stored_ones(store: LmdbStore, caplog: pytest.LogCaptureFixture) -> None:
    set_group(Groups(store), "a", max_running=1)
    with caplog.at_level(logging.WARNING):
        groups = Groups(store, [fixed("a", max_running=2), fixed("b")])
    assert [record.message for record in caplog.records if "settings file" in record.message] == [
        "group a is in the settings file; what was set for it before does not count"
    ]
    assert groups.get("a").message.max_running == 2
    for change in (lambda: set_group(groups, "a"), lambda: asyncio.run(groups.delete("b"))):
        with pytest.raises(NotEnabledError, match="settings file"):
            change()
    assert Groups(store).get("a").message.max_running == 1


class Devices:
    """Devices that can give so much, and what they were told."""

    def __init__(self, *devices: Reservable) -> None:
        self._devices = devices
        self.told: list[Mapping[str, int]] = []

    def reservable(self) -> Sequence[Reservable]:
        return self._devices

    def reserve(self, groups: Mapping[str, int]) -> None:
        self.told.append(groups)


class TestReservation:
    EMULATOR = Reservable("emulator", 132, 0)
    GPU = Reservable("cuda:0", 132, 8)

    @pytest.mark.parametrize("devices", [[], [EMULATOR]], ids=["none", "emulator"])
    def test_no_device_can(self, store: LmdbStore, devices: list[Reservable]) -> None:
        with pytest.raises(InvalidRequestError, match=r"group\.reserved_multiprocessors: no device of this server can reserve"):
            set_group(Groups(store, devices=Devices(*devices)), "a", reserved_multiprocessors=1)

    def test_one_cannot(self, store: LmdbStore) -> None:
        with pytest.raises(InvalidRequestError, match="the device emulator cannot reserve"):
            set_group(Groups(store, devices=Devices(self.GPU, self.EMULATOR)), "a", reserved_multiprocessors=1)

    def test_what_all_groups_reserve_must_fit_and_leave_some(self, store: LmdbStore) -> None:
        devices = Devices(self.GPU)
        groups = Groups(store, devices=devices)
        set_group(groups, "a", reserved_multiprocessors=100)
        set_group(groups, "a", reserved_multiprocessors=105)
        set_group(groups, "b", reserved_multiprocessors=8)
        for name, wanted, error in (
            ("b", 9, "cuda:0 has 132 multiprocessors, of which 120 can be reserved, in multiples of 8; 112 are other"),
            ("c", 1, "120 are other groups' own, so 8 more are too many"),
        ):
            with pytest.raises(InvalidRequestError, match=error):
                set_group(groups, name, reserved_multiprocessors=wanted)
        assert groups.get("b").message.reserved_multiprocessors == 8
        assert devices.told == [{"a": 100}, {"a": 105}, {"a": 105, "b": 8}]

    def test_the_devices_are_told_of_each_change(self, store: LmdbStore) -> None:
        devices = Devices(self.GPU)
        groups = Groups(store, devices=devices)
        set_group(groups, "a", reserved_multiprocessors=8)
        set_group(groups, "a", reserved_multiprocessors=8, share=2)
        set_group(groups, "b")
        set_group(groups, "a", share=2)
        set_group(groups, "b", reserved_multiprocessors=16)
        asyncio.run(groups.delete("b"))
        assert devices.told == [{"a": 8}, {}, {"b": 16}, {}]

    def test_it_holds_after_a_restart(self, store: LmdbStore) -> None:
        set_group(Groups(store, devices=Devices(self.GPU)), "a", reserved_multiprocessors=8)
        devices = Devices(self.GPU)
        Groups(store, [fixed("b", reserved_multiprocessors=16)], devices)
        assert devices.told == [{"a": 8, "b": 16}]

    def test_of_the_settings_file(self, store: LmdbStore) -> None:
        with pytest.raises(InvalidRequestError, match=r"groups\.a\.reserved_multiprocessors: no device"):
            Groups(store, [fixed("a", reserved_multiprocessors=1)])


def test_a_listener_hears_of_all_groups_and_of_changes(store: LmdbStore) -> None:
    set_group(Groups(store), "a", share=3)
    groups, listener = Groups(store), Listener()
    groups.listen(listener)
    assert sorted(map(str, listener.told)) == sorted(map(str, [scheduling.Group("a", 3.0), scheduling.Group("default")]))
    listener.told.clear()
    set_group(groups, "b", priority=2)
    asyncio.run(groups.delete("a"))
    assert listener.told == [scheduling.Group("b", priority=2), "a"]


def test_what_a_group_uses(store: LmdbStore) -> None:
    groups = Groups(store)
    assert groups.use("default") == admin_pb2.GroupUse()
    groups.listen(Listener())
    expected = admin_pb2.GroupUse(queued=1, queued_bytes=2, running=3, started=4, resident=5, share_wanted=0.5, share_got=0.25)
    expected.device_time.FromMilliseconds(1500)
    expected.queue_time.FromMilliseconds(6)
    assert groups.use("default") == expected
    with pytest.raises(GroupNotFoundError):
        groups.use("a")


def test_the_queue_of_requests_is_a_listener(store: LmdbStore) -> None:
    async def use() -> list[scheduling.Group]:
        groups, scheduler = Groups(store), Scheduler()
        queue = RequestQueue(scheduler, ["emulator"])
        groups.listen(queue)
        await groups.set(admin_pb2.Group(name="a"))
        assert groups.use("a") == admin_pb2.GroupUse(device_time=Duration(), queue_time=Duration())
        queue.close()
        return scheduler.groups()

    assert asyncio.run(use()) == [scheduling.Group("default"), scheduling.Group("a")]


def test_one_that_is_damaged_is_refused_until_it_is_set_again(store: LmdbStore, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "default"):
        set_group(Groups(store), name, max_running=1)
        with store._environment.write() as txn:
            database = store._environment.entries[Namespace.GROUPS]
            raw = bytearray(txn.get(name.encode(), db=database))
            raw[-1] ^= 1
            txn.put(name.encode(), bytes(raw), db=database)
    groups = Groups(store)
    with pytest.raises(DataDamagedError) as raised:
        groups.get("a")
    assert raised.value.metadata == {"kind": "group", "key": "a"}
    assert groups.get("default").message.max_running == 0
    assert "group default has no limits until they are set again" in caplog.text
    set_group(groups, "a")
    assert groups.get("a").message.share == 1
    assert "a" in Groups(store)


def test_one_that_is_damaged_can_be_deleted(store: LmdbStore) -> None:
    store.commit([Write("a", [b"\xff"], namespace=Namespace.GROUPS)]).result()
    groups = Groups(store)
    assert "a" not in groups
    set_group(groups, "a")
    asyncio.run(groups.delete("a"))
    assert [group.name for group in Groups(store).list()] == ["default"]
