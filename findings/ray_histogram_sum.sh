#!/usr/bin/env bash
# The sum of a Ray metric's histogram is made up of the middles of its buckets.
#
# One would think: NAME_sum / NAME_count of a ray.util.metrics.Histogram is the mean of what was observed, as it is for any histogram
#   in Prometheus's format.
# Seen (ray 2.60.0): 100 observations of 0.2, with the boundaries 0.1 and 1, are exported with the count 100 and a sum of 55: 100 times
#   0.55, the middle of the bucket. A worker passes the numbers of its buckets on to the node's agent, which observes each bucket's
#   middle as often.
# So: a mean by that sum can be off by half a bucket's width. Percentiles are as good as the boundaries, as ever. What is to be exact is a
#   counter of its own; kaasd_device_seconds_total is one.
# Source: ray/python/ray/_private/telemetry/open_telemetry_metric_recorder.py, and reporter_agent.py of its dashboard.
#
# Needs Python with venv and pip on Linux; no privileges. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv > /dev/null
venv/bin/pip install --quiet --disable-pip-version-check 'ray[default]==2.60.0' 2> /dev/null

cat > observe.py <<'PYTHON'
import logging
import time
import urllib.request

import ray
from ray.util.metrics import Histogram

OBSERVED, NUMBER, BOUNDARIES = 0.2, 100, [0.1, 1.0]

ray.init(
    address="local",
    num_cpus=1,
    include_dashboard=False,
    logging_level=logging.ERROR,
    _system_config={"metrics_report_interval_ms": 500},
)
histogram = Histogram("observed_seconds", boundaries=BOUNDARIES)
for _ in range(NUMBER):
    histogram.observe(OBSERVED)
(node,) = ray.nodes()
address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
found = {}
deadline = time.monotonic() + 60
while found.get("count") != NUMBER and time.monotonic() < deadline:
    time.sleep(0.5)
    try:
        text = urllib.request.urlopen(address, timeout=10).read().decode()
    except OSError:
        continue
    lines = [line for line in text.splitlines() if line.startswith("ray_observed_seconds_")]
    found = {line.split("{")[0].rpartition("_")[2]: float(line.rpartition(" ")[2]) for line in lines}
ray.shutdown()
middle = sum(BOUNDARIES) / 2
print(f"observed {NUMBER} times {OBSERVED}: count {found['count']:.0f}, sum {found['sum']:.2f}; truly {NUMBER * OBSERVED:.2f}")
assert found["count"] == NUMBER
assert abs(found["sum"] - NUMBER * middle) < 1e-6
PYTHON

RAY_USAGE_STATS_ENABLED=0 venv/bin/python observe.py
