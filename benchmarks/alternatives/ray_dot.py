"""The dot product in a Ray actor with CuPy, where Ray is installed."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_ACTOR_OPTIONS = {"num_cpus": 0, "num_gpus": 0.05}


def missing() -> str | None:
    """Say why there can be no actor, or None."""
    absent = [name for name in ("ray", "cupy") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


@contextmanager
def ray_cluster() -> Iterator[Callable[[], Any]]:
    """Run Ray on this machine for the time of a ``with`` block; yield what makes an actor with the method ``dot``."""
    import ray

    # Where an actor finds this package: its process has the environment of the one that started Ray.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    class Dot:
        def __init__(self) -> None:
            from benchmarks.alternatives.cupy_dot import CupyDot

            self._dot = CupyDot()

        def dot(self, a: bytes) -> bytes:
            return self._dot(a)

    actor_type = ray.remote(Dot)
    try:
        yield lambda: actor_type.options(**_ACTOR_OPTIONS).remote()
    finally:
        ray.shutdown()


def ask(actor: Any, a: bytes) -> bytes:
    """Return an actor's dot product."""
    import ray

    result: bytes = ray.get(actor.dot.remote(a), timeout=60)
    return result


def calls_per_second(actor: Any, a: bytes, callers: int, seconds: float) -> float:
    """Return how many calls a second so many threads get answered together."""
    end = time.perf_counter() + seconds

    def call() -> int:
        calls = 0
        while time.perf_counter() < end:
            ask(actor, a)
            calls += 1
        return calls

    start = time.perf_counter()
    with ThreadPoolExecutor(callers) as threads:
        total = sum(future.result() for future in [threads.submit(call) for _ in range(callers)])
    return total / (time.perf_counter() - start)
