"""Requests are to be seen where Ray shows what runs: by its state API, in its timeline, and in its metrics."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.ray.seen import CALLS

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen() -> Any:
    """What Ray told of requests on a cluster of its own, as its dashboard cannot be added to one that runs."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.ray.seen"], cwd=_ROOT, stdout=subprocess.PIPE, text=True, timeout=240, check=True
    )
    return json.loads(ran.stdout)


def metric(lines: list[str], name: str, **labels: str) -> float:
    """Return the one value of a metric that has these labels."""
    pattern = re.compile(rf"ray_{name}{{(?P<labels>.*)}} (?P<value>\S+)")
    found = [match for match in map(pattern.fullmatch, lines) if match]
    (value,) = [
        float(match["value"])
        for match in found
        if all(f'{label}="{wanted}"' in match["labels"] for label, wanted in labels.items())
    ]
    return value


@pytest.mark.timeout(300)
def test_what_ray_shows(seen: Any) -> None:
    tasks, lines = Counter(seen["tasks"]), seen["metrics"]
    assert tasks["dot product"] == CALLS + 1, "by their function's name, also the one that failed"
    assert "task::dot product" in seen["timeline"]
    assert metric(lines, "kaasd_requests_total", device="emulator:0", group="team", code="OK") == CALLS
    assert metric(lines, "kaasd_requests_total", device="emulator:0", group="unknown", code="NOT_FOUND") == 1
    assert metric(lines, "kaasd_queue_requests", device="emulator:0", group="team") == 0
    assert metric(lines, "kaasd_device_seconds_total", device="emulator:0", group="team") > 0
    assert metric(lines, "kaasd_request_seconds_count", stage="run") == CALLS
    assert metric(lines, "kaasd_request_seconds_count", stage="total") == CALLS + 1
    assert metric(lines, "kaasd_device_held_bytes", device="emulator:0") > 0
