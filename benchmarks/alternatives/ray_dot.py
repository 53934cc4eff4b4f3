"""The dot product in a Ray actor with CuPy, where Ray is installed: a process that starts Ray and calls the actor as it is told.

It is a process of its own because Ray forks, which one that speaks gRPC must not.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.crew import Crew, orders, report
from benchmarks.problems import dot_of, dot_vectors

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60

_ACTOR_OPTIONS = {"num_cpus": 0, "num_gpus": 0.05}


def missing() -> str | None:
    """Say why there can be no actor, or None."""
    absent = [name for name in ("ray", "cupy") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


class RayClient:
    """What the process does for the benchmark. Use it as a context manager; raises ``RuntimeError`` where Ray does not start."""

    def __init__(self) -> None:
        self._crew = Crew(__name__, 1)
        self._crew.wait_until_ready()

    def __enter__(self) -> RayClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self._crew.close()

    def calls(self, number: int) -> list[float]:
        """Call one actor again and again; return what each call took, in seconds."""
        return self._do(calls=number)

    def calls_per_second(self, callers: int, seconds: float) -> list[float]:
        """Return how many calls a second so many threads get answered together, as a list of one."""
        return self._do(callers=callers, seconds=seconds)

    def first_call(self) -> list[float]:
        """Return how long a new actor takes from its making to its first result, in seconds, as a list of one."""
        return self._do(new_actor=True)

    def _do(self, **order: Any) -> list[float]:
        (answer,) = self._crew.run([order])
        samples: list[float] = answer["samples"]
        return samples


def main() -> None:
    """Start Ray and an actor, check that it is right, and follow orders."""
    import ray

    # Where an actor finds this package: its process has the environment of the one that started Ray.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    class Dot:
        def __init__(self) -> None:
            from benchmarks.alternatives.cupy_dot import CupyDot

            self._dot = CupyDot()

        def dot(self, a: bytes) -> bytes:
            return self._dot(a)

    actor_type = ray.remote(Dot)
    a, b = dot_vectors()
    value, expected = a.tobytes(), dot_of(a, b)

    def new_actor() -> Any:
        return actor_type.options(**_ACTOR_OPTIONS).remote()

    def ask(actor: Any) -> float:
        start = time.perf_counter()
        result = ray.get(actor.dot.remote(value), timeout=TIMEOUT_S)
        assert result == expected, "the actor computed something else"
        return time.perf_counter() - start

    def ask_until(end: float) -> int:
        calls = 0
        while time.perf_counter() < end:
            ask(actor)
            calls += 1
        return calls

    actor = new_actor()
    ask(actor)
    report(ready=True)
    for order in orders():
        start = time.perf_counter()
        if "calls" in order:
            samples = [ask(actor) for _ in range(order["calls"])]
        elif "callers" in order:
            with ThreadPoolExecutor(order["callers"]) as threads:
                ends = [start + order["seconds"]] * order["callers"]
                calls = sum(threads.map(ask_until, ends))
            samples = [calls / (time.perf_counter() - start)]
        else:
            ask(new_actor())
            samples = [time.perf_counter() - start]
        report(samples=samples)
    ray.shutdown()


if __name__ == "__main__":
    main()
