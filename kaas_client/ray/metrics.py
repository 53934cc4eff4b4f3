"""What an executor says of itself in Ray's own metrics: noted as calls end, passed on every few seconds, as that takes longer."""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter, sleep
from typing import NamedTuple

from ray.util.metrics import Counter, Gauge, Histogram

from kaas_core.errors import KaasError
from kaasd.scheduling import GroupUse

PUBLISH_EVERY_S = 5.0
BOUNDARIES_S = [boundary * 10.0**power for power in range(-4, 2) for boundary in (1, 2.5, 5)]
"""Of the histogram."""


class Usage(NamedTuple):
    """Of an executor's device."""

    held_bytes: int
    """Of its memory."""
    in_use_bytes: int
    """Of these, by calls under way."""
    uploads: int
    """Copies of inputs to it since it was opened, apart from the small ones that travel with launches."""
    uploaded_bytes: int
    """By these."""


class Metrics:
    """The metrics of one executor. Their names and labels are those of ``kaasd``; Ray adds its own, and the prefix ``ray_``."""

    def __init__(self, device: str, group_uses: Callable[[], Mapping[str, GroupUse]], usage: Callable[[], Usage]) -> None:
        """``group_uses`` and ``usage`` say how things are; any thread may call them."""
        self._group_uses, self._usage = group_uses, usage
        self._ended: deque[tuple[str, str]] = deque()
        self._seconds: deque[tuple[str, float]] = deque()
        self._told: dict[tuple[object, ...], float] = {}
        """What counters have been raised to, of what is known as a sum."""

        def by(*labels: str) -> dict[str, tuple[str, ...]]:
            return {"tag_keys": (*labels, "device")}

        self._requests = Counter("kaasd_requests_total", "Requests that ended, by status code.", **by("group", "code"))
        self._request_seconds = Histogram(
            "kaasd_request_seconds",
            "Time by stage; total is all of it at the executor.",
            boundaries=BOUNDARIES_S,
            **by("stage"),
        )
        self._queued = Gauge("kaasd_queue_requests", "Requests that wait.", **by("group"))
        self._device_seconds = Counter("kaasd_device_seconds_total", "Device time of requests.", **by("group"))
        self._held = Gauge("kaasd_device_held_bytes", "Device memory that holds values and buffers.", **by())
        self._uploaded = Counter("kaasd_uploaded_bytes_total", "Bytes of inputs that were copied to the device.", **by())
        counters = (self._requests, self._device_seconds, self._uploaded)
        for metric in (*counters, self._request_seconds, self._queued, self._held):
            metric.set_default_tags({"device": device})

    def begin(self) -> None:
        """Publish from now on, until the process ends."""
        threading.Thread(target=self._publish_for_ever, name="metrics", daemon=True).start()

    @contextmanager
    def request(self, group: str) -> Iterator[None]:
        """Note how a request ends. For any thread."""
        started, code = perf_counter(), "OK"
        try:
            yield
        except BaseException as error:
            code = error.code if isinstance(error, KaasError) else "UNKNOWN"
            raise
        finally:
            self._ended.append((group, code))
            self._seconds.append(("total", perf_counter() - started))

    def stages_ended(self, stages_ns: Mapping[str, int]) -> None:
        """A request has run, and took so long in each stage. For any thread."""
        self._seconds.extend((stage, ns / 1e9) for stage, ns in stages_ns.items())

    def publish(self) -> None:
        """Pass on what there is to say. For one thread at a time."""
        ended = Tally(self._ended.popleft() for _ in range(len(self._ended)))
        for (group, code), number in ended.items():
            self._requests.inc(number, {"group": group, "code": code})
        for _ in range(len(self._seconds)):
            stage, seconds = self._seconds.popleft()
            self._request_seconds.observe(seconds, {"stage": stage})
        for group, use in self._group_uses().items():
            self._queued.set(use.queued, {"group": group})
            self._raise_to(self._device_seconds, use.device_s, {"group": group})
        usage = self._usage()
        self._held.set(usage.held_bytes)
        self._raise_to(self._uploaded, usage.uploaded_bytes, {})

    def _raise_to(self, counter: Counter, total: float, tags: dict[str, str]) -> None:
        key = (counter, *tags.values())
        if (more := total - self._told.get(key, 0.0)) > 0:
            counter.inc(more, tags)
            self._told[key] = total

    def _publish_for_ever(self) -> None:
        while True:
            sleep(PUBLISH_EVERY_S)
            self.publish()
