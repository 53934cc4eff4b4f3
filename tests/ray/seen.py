"""A cluster with Ray's dashboard, which runs requests and prints what Ray tells of them, as JSON: a process of its own."""

from __future__ import annotations

import json
import logging
import sys
import time
import urllib.request
from contextlib import suppress
from typing import Any

import ray
from ray.util.state import list_tasks

import kaas_client.ray as kaas_ray
from tests.ray.conftest import OBJECT_STORE_BYTES, set_up_environment
from tests.ray.support import dot_request, vectors

CALLS = 5
TIMEOUT_S = 90.0


def main() -> None:
    """Run, look, and print. Exits 1 where what is to be seen does not come."""
    set_up_environment()
    context: Any = ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=True,
        dashboard_port=0,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    try:
        kaas_ray.init("emulator", executors=1)
        kaas_ray.set_group("team")
        kaas_ray.register("dot product", dot_request())
        dot = kaas_ray.remote("dot product").options(group="team")
        a, b = vectors(1)
        ray.get([dot.remote(a=a, b=b) for _ in range(CALLS)])
        with suppress(ray.exceptions.RayTaskError):
            ray.get(dot.options(group="unknown").remote(a=a, b=b))
        (node,) = ray.nodes()
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        seen = {
            "tasks": _wait_for(lambda: _finished(context.address_info["address"])),
            "metrics": _wait_for(lambda: _metrics(address)),
            "timeline": sorted({event["cat"] for event in ray.timeline()}),
        }
    finally:
        ray.shutdown()
    json.dump(seen, sys.stdout)


def _finished(address: str) -> list[str]:
    found = [task.name for task in list_tasks(address, limit=100) if task.state in ("FINISHED", "FAILED")]
    return found if len(found) > CALLS + 1 else []


def _metrics(address: str) -> list[str]:
    with urllib.request.urlopen(address, timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_kaasd_")]
    requests = sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("ray_kaasd_requests_total{"))
    others = ("request_seconds_count", "queue_requests", "device_seconds_total", "device_held_bytes")
    is_complete = all(any(line.startswith(f"ray_kaasd_{name}{{") for line in lines) for name in others)
    return lines if is_complete and requests == CALLS + 1 else []


def _wait_for(look: Any) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := look()):
        if time.monotonic() > deadline:
            sys.exit(f"nothing was to be seen within {TIMEOUT_S:.0f} s")
        time.sleep(0.5)
    return found


if __name__ == "__main__":
    main()
