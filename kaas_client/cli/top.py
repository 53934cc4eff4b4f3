"""``kaasctl top``: what groups and devices do, as it goes on."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from kaas_client.cli.output import Format, format_duration, format_size, printable
from kaas_client.cli.session import connected, session_of

if TYPE_CHECKING:
    from rich.console import Group as Renderables

    from kaas_client import Client
    from kaas_client.types import DeviceInfo, DeviceStats, GroupUse, Stats

_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0}


@dataclass(frozen=True, slots=True)
class GroupRow:
    """What a group does. What has no meaning, as where nothing was started, is None."""

    group: str
    share_wanted: float
    share_got: float
    queued: int
    running: int
    mean_wait_ns: int | None
    """For a device, of a request that was started since the last refresh."""
    device_time_per_s: float
    """Seconds in each second since the last refresh; more than 1 where requests run side by side."""
    hit_ratio: float | None
    """The part of the requests started since the last refresh that found all that they need on their device."""


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """What a device does."""

    device: str
    state: str
    busy: float
    """Time in kernels in each second since the last refresh; more than 1 where requests run side by side."""
    memory_used_bytes: int
    memory_bytes: int
    queued: int
    running: int


@dataclass(frozen=True, slots=True)
class Rows:
    """What is shown at once."""

    groups: list[GroupRow] = field(default_factory=list)
    devices: list[DeviceRow] = field(default_factory=list)


def parse_interval(text: str) -> float:
    """Return seconds: a number, or text such as ``500ms``. Raises ``typer.BadParameter``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text, re.ASCII)
    if match is None or match[2] not in _UNITS or not (seconds := float(match[1]) * _UNITS[match[2]]):
        raise typer.BadParameter(f"expected a time such as 1s or 500ms, got {text!r}")
    return seconds


def rows(before: Stats | None, now: Stats, devices: tuple[DeviceInfo, ...]) -> Rows:
    """Return what has happened between two answers of a server; with None, since it started."""
    if before is not None and before.uptime_ns >= now.uptime_ns:
        before = None  # It was restarted.
    elapsed_ns = max(1, now.uptime_ns - (before.uptime_ns if before is not None else 0))
    groups_before = before.groups if before is not None else {}
    devices_before = {stats.device: stats for stats in before.devices} if before is not None else {}
    known = {device.name: device for device in devices}
    return Rows(
        [_group_row(name, groups_before.get(name), use, elapsed_ns) for name, use in now.groups.items()],
        [
            _device_row(known[stats.device], devices_before.get(stats.device), stats, elapsed_ns)
            for stats in now.devices
            if stats.device in known
        ],
    )


def _group_row(name: str, before: GroupUse | None, now: GroupUse, elapsed_ns: int) -> GroupRow:
    if before is not None and before.started > now.started:
        before = None  # It was removed, and made again.
    started = now.started - (before.started if before else 0)
    waited_ns = max(0, now.queue_time_ns - (before.queue_time_ns if before else 0))
    resident = max(0, now.resident - (before.resident if before else 0))
    device_ns = max(0, now.device_time_ns - (before.device_time_ns if before else 0))
    return GroupRow(
        name,
        now.share_wanted,
        now.share_got,
        now.queued,
        now.running,
        waited_ns // started if started else None,
        device_ns / elapsed_ns,
        min(1.0, resident / started) if started else None,
    )


def _device_row(device: DeviceInfo, before: DeviceStats | None, now: DeviceStats, elapsed_ns: int) -> DeviceRow:
    busy = (now.run_time_ns - (before.run_time_ns if before else 0)) / elapsed_ns
    return DeviceRow(device.name, device.state, busy, device.memory_used_bytes, device.memory_bytes, now.queued, now.running)


def top(
    ctx: typer.Context,
    interval: Annotated[
        float, typer.Option(parser=parse_interval, metavar="TIME", help="Between two refreshes, such as 500ms.")
    ] = "1s",  # type: ignore[assignment]  # It is parsed too.
    once: Annotated[bool, typer.Option("--once", help="Print it once, for what happened in one interval, and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each refresh as one line of JSON.")] = False,
) -> None:
    """Show what groups and devices do, until interrupted; once, where the output is no terminal."""
    as_json = as_json or session_of(ctx).output is Format.JSON
    live = sys.stdout.isatty() and not once and not as_json
    with connected(ctx) as (client, _):
        before = client.stats()
        if live:
            _live(client, before, interval)
            return
        while True:
            time.sleep(interval)
            now = client.stats()
            shown = rows(before, now, client.devices())
            if as_json:
                print(json.dumps(asdict(shown), ensure_ascii=False), flush=True)
            else:
                _print(shown)
            if once or not as_json:
                return
            before = now


def _live(client: Client, before: Stats, interval: float) -> None:
    from rich.live import Live

    with Live(_tables(rows(None, before, client.devices())), auto_refresh=False, screen=True) as live:
        live.refresh()
        while True:
            time.sleep(interval)
            now = client.stats()
            live.update(_tables(rows(before, now, client.devices())), refresh=True)
            before = now


def _print(shown: Rows) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
    with console.capture() as capture:
        console.print(_tables(shown))
    for line in capture.get().splitlines():
        print(line.rstrip())


def _tables(shown: Rows) -> Renderables:
    from rich.console import Group as Renderables
    from rich.table import Table
    from rich.text import Text

    def table(headings: str, cells: list[list[str]]) -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold")
        for heading in headings.split(","):
            made.add_column(heading, no_wrap=True)
        for row in cells:
            made.add_row(*map(Text, row))
        return made

    groups = [
        [
            printable(row.group),
            _percent(row.share_wanted),
            _percent(row.share_got),
            str(row.queued),
            str(row.running),
            "-" if row.mean_wait_ns is None else format_duration(row.mean_wait_ns),
            f"{format_duration(round(row.device_time_per_s * 1e9))}/s",
            _percent(row.hit_ratio),
        ]
        for row in shown.groups
    ]
    devices = [
        [
            printable(row.device),
            row.state,
            _percent(row.busy),
            f"{format_size(row.memory_used_bytes)} of {format_size(row.memory_bytes)}",
            str(row.queued),
            str(row.running),
        ]
        for row in shown.devices
    ]
    return Renderables(
        table("GROUP,WANTED,GOT,QUEUED,RUNNING,MEAN WAIT,DEVICE TIME,HITS", groups),
        Text(),
        table("DEVICE,STATE,BUSY,MEMORY USED,QUEUED,RUNNING", devices),
    )


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.0f} %"
