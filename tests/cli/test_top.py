"""``kaasctl top``."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import typer
from google.protobuf.duration_pb2 import Duration

from kaas.v1 import admin_pb2
from kaas_client._convert import device, stats
from kaas_client.cli.top import DeviceRow, GroupRow, parse_interval, rows
from tests.cli.conftest import Done, succeed
from tests.client.fake_server import FakeServer

Kaasctl = Callable[..., Done]
DEVICE = admin_pb2.Device(
    name="cuda:0", state=admin_pb2.WORKER_STATE_DRAINING, memory_used_bytes=3 << 20, memory_bytes=4 << 30, worker_pid=7
)
DEVICES = admin_pb2.ListDevicesResponse(devices=[DEVICE])


def answer(
    seconds: int, *, started: int, resident: int, waited_ms: int, device_ms: int, run_ms: int
) -> admin_pb2.GetStatsResponse:
    """Return what a server says that is so old, of one group and one device."""
    milliseconds = 1_000_000
    use = admin_pb2.GroupUse(
        queued=4,
        running=2,
        started=started,
        resident=resident,
        queue_time=Duration(nanos=waited_ms * milliseconds),
        device_time=Duration(nanos=device_ms * milliseconds),
        share_wanted=0.75,
        share_got=0.5,
    )
    used = admin_pb2.DeviceStats(device="cuda:0", queued=4, running=2, run_time=Duration(nanos=run_ms * milliseconds))
    return admin_pb2.GetStatsResponse(uptime=Duration(seconds=seconds), groups={"research": use}, devices=[used])


FIRST = answer(10, started=10, resident=1, waited_ms=100, device_ms=200, run_ms=300)
SECOND = answer(12, started=14, resident=4, waited_ms=180, device_ms=700, run_ms=800)
GROUP = GroupRow("research", 0.75, 0.5, 4, 2, mean_wait_ns=20_000_000, device_time_per_s=0.25, hit_ratio=0.75)
BUSY = DeviceRow("cuda:0", "draining", 0.25, 3 << 20, 4 << 30, 4, 2)


def test_what_has_happened_between_two_answers() -> None:
    shown = rows(stats(FIRST), stats(SECOND), (device(DEVICE),))
    assert (shown.groups, shown.devices) == ([GROUP], [BUSY])


def test_where_nothing_was_started_there_is_no_mean() -> None:
    shown = rows(stats(FIRST), replace(stats(FIRST), uptime_ns=11 * 10**9), ())
    assert shown.groups == [replace(GROUP, mean_wait_ns=None, device_time_per_s=0, hit_ratio=None)]
    assert shown.devices == []


@pytest.mark.parametrize("before", [None, SECOND])
def test_what_has_happened_since_a_start(before: admin_pb2.GetStatsResponse | None) -> None:
    """Also where the server has started anew since the answer before."""
    (group,) = rows(None if before is None else stats(before), stats(FIRST), ()).groups
    assert (group.mean_wait_ns, group.device_time_per_s, group.hit_ratio) == (10_000_000, 0.02, 0.1)


def test_a_group_that_was_made_again() -> None:
    again = replace(stats(FIRST), uptime_ns=20 * 10**9)
    (group,) = rows(stats(SECOND), again, ()).groups
    assert (group.mean_wait_ns, group.device_time_per_s, group.hit_ratio) == (10_000_000, 0.025, 0.1)


def test_what_came_before_the_last_refresh_and_ended_after_it_is_no_more_than_all() -> None:
    later = answer(12, started=11, resident=9, waited_ms=100, device_ms=200, run_ms=300)
    assert rows(stats(FIRST), stats(later), ()).groups[0].hit_ratio == 1


@pytest.mark.parametrize(("text", "seconds"), [("1", 1.0), ("0.5s", 0.5), ("500ms", 0.5), ("2 min", 120.0)])
def test_intervals(text: str, seconds: float) -> None:
    assert parse_interval(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1s", "1h", "s", "1e3"])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected a time such as 1s or 500ms"):
        parse_interval(text)


def test_without_a_terminal_it_is_printed_once(kaasctl: Kaasctl, server: FakeServer) -> None:
    for options in ([], ["--once"]):
        for reply in (FIRST, SECOND):
            server.expect("GetStats", reply)
        server.expect("ListDevices", DEVICES)
        assert succeed(kaasctl("top", "--interval", "1ms", *options)).text.splitlines() == [
            "GROUP     WANTED  GOT   QUEUED  RUNNING  MEAN WAIT  DEVICE TIME  HITS",
            "research  75 %    50 %  4       2        20.0 ms    250.0 ms/s   75 %",
            "",
            "DEVICE  STATE     BUSY  MEMORY USED         QUEUED  RUNNING",
            "cuda:0  draining  25 %  3.0 MiB of 4.0 GiB  4       2",
        ]


@pytest.mark.parametrize("options", [["top", "--json"], ["-o", "json", "top"]])
def test_as_json_it_is_one_object_a_line(kaasctl: Kaasctl, server: FakeServer, options: list[str]) -> None:
    for reply in (FIRST, SECOND):
        server.expect("GetStats", reply)
    server.expect("ListDevices", DEVICES)
    (line,) = succeed(kaasctl(*options, "--once", "--interval", "1ms")).text.splitlines()
    shown = json.loads(line)
    assert GroupRow(**shown["groups"][0]) == GROUP
    assert DeviceRow(**shown["devices"][0]) == BUSY


def test_on_a_terminal_it_goes_on_until_interrupted(server: FakeServer, address: str) -> None:
    server.expect("GetStats", FIRST)
    server.expect("ListDevices", DEVICES)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kaas_client.cli.main", "--address", address, "top", "--interval", "1000s"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": "120"}) as process:
        os.close(theirs)
        shown = b""
        while b"draining" not in shown:
            shown += os.read(ours, 4096)
        assert b"research" in shown
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    os.close(ours)
