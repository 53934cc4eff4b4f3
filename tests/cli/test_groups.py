"""``kaasctl group``, and ``--group``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from kaas.v1 import admin_pb2, kv_pb2
from tests.cli.conftest import Done, succeed
from tests.client.fake_server import Failure, FakeServer
from tests.client.test_calls import entry_message
from tests.client.test_groups import GROUP_MESSAGE, USE_MESSAGE

Kaasctl = Callable[..., Done]
ABSENT = Failure("NOT_FOUND", "there is no group 'x'", "GROUP_NOT_FOUND", {"group": "x"})


def test_ls(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect(
            "ListGroups", admin_pb2.ListGroupsResponse(groups=[admin_pb2.Group(name="default", share=1), GROUP_MESSAGE])
        )
    assert succeed(kaasctl("group", "ls")).text.splitlines() == [
        "NAME      SHARE  PRIORITY  MAX RUNNING  MAX QUEUED  MAX DEVICE MEMORY  MAX STORED  MAX KEYS",
        "default   1.0    0         0            0           0 B                0 B         0",
        "research  2.5    -1        2            3           5 B                6 B         9",
    ]
    printed = json.loads(succeed(kaasctl("-o", "json", "group", "ls")).text)
    assert printed[1] == {
        "name": "research",
        "share": 2.5,
        "priority": -1,
        "max_running": 2,
        "max_queued": 3,
        "max_queued_bytes": 4,
        "max_device_memory_bytes": 5,
        "max_stored_bytes": 6,
        "reserved_multiprocessors": 7,
        "max_region_bytes": 8,
        "max_keys": 9,
    }


def test_stat_names_each_figure_once(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("GetGroup", admin_pb2.GetGroupResponse(group=GROUP_MESSAGE, use=USE_MESSAGE))
    lines = [re.split("  +", line) for line in succeed(kaasctl("group", "stat", "research")).text.splitlines()]
    names = [name for name, _ in lines]
    assert len(set(names)) == len(names)
    assert ["group max queued", "3"] in lines
    assert ["group max queued bytes", "4 B"] in lines


def test_set_makes_a_group(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("GetGroup", ABSENT)
    server.expect("SetGroup", admin_pb2.SetGroupResponse(group=GROUP_MESSAGE))
    options = ["--share", "0.5", "--priority", "-3", "--max-stored-bytes", "10GiB", "--max-keys", "7"]
    assert "research" in succeed(kaasctl("group", "set", "x", *options)).text
    assert server.only_call("SetGroup").request.group == admin_pb2.Group(
        name="x", share=0.5, priority=-3, max_stored_bytes=10 << 30, max_keys=7
    )


def test_set_leaves_what_is_not_given(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("GetGroup", admin_pb2.GetGroupResponse(group=GROUP_MESSAGE))
    server.expect("SetGroup", admin_pb2.SetGroupResponse(group=GROUP_MESSAGE))
    succeed(kaasctl("group", "set", "research", "--max-running", "0", "--max-queued-bytes", "5"))
    expected = admin_pb2.Group()
    expected.CopyFrom(GROUP_MESSAGE)
    expected.max_running, expected.max_queued_bytes = 0, 5
    assert server.only_call("SetGroup").request.group == expected


def test_set_refuses_what_is_no_size(kaasctl: Kaasctl, server: FakeServer) -> None:
    done = kaasctl("group", "set", "x", "--max-stored-bytes", "big")
    assert done.code == 2
    assert "expected a size such as 16MiB, got 'big'" in " ".join(done.stderr.replace("│", " ").split())


def test_stat(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("GetGroup", admin_pb2.GetGroupResponse(group=GROUP_MESSAGE, use=USE_MESSAGE))
    lines = [line.split() for line in succeed(kaasctl("group", "stat", "research")).text.splitlines()]
    for line in (["group", "share", "2.5"], ["use", "device", "time", "4.0", "s"], ["use", "stored", "8", "B"], ["fixed", "no"]):
        assert line in lines
    printed = json.loads(succeed(kaasctl("-o", "json", "group", "stat", "research")).text)
    assert (printed["group"]["max_keys"], printed["use"]["device_time_ns"], printed["fixed"]) == (9, 4 * 10**9, False)
    server.expect("GetGroup", ABSENT)
    done = kaasctl("group", "stat", "x")
    assert (done.code, done.stderr) == (4, "kaasctl: there is no group 'x'\n")


def test_rm(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("DeleteGroup", admin_pb2.DeleteGroupResponse())
    assert succeed(kaasctl("group", "rm", "a", "b")).stdout == b""
    assert [call.request.name for call in server.calls] == ["a", "b"]


def test_statistics_of_groups(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("GetStats", admin_pb2.GetStatsResponse(groups={"research": USE_MESSAGE}))
    lines = [line.split() for line in succeed(kaasctl("stats")).text.splitlines()]
    assert ["groups", "research", "queue", "time", "7", "ns"] in lines
    printed = json.loads(succeed(kaasctl("-o", "json", "stats")).text)
    assert printed["groups"]["research"]["keys"] == 9


def test_whom_calls_are_for(kaasctl: Kaasctl, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        server.expect("Stat", kv_pb2.StatResponse(entry=entry_message("k")))
    succeed(kaasctl("--group", "a", "kv", "stat", "k"))
    monkeypatch.setenv("KAAS_GROUP", "b")
    succeed(kaasctl("kv", "stat", "k"))
    succeed(kaasctl("--group", "a", "kv", "stat", "k"))
    assert [call.request.group for call in server.calls] == ["a", "b", "a"]
