"""A Ray cluster with kaasd's executor and with plain actors that do the same work: a process that calls them as it is told.

It is a process of its own because Ray forks, which one that speaks gRPC must not.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.crew import orders, report
from benchmarks.problems import DOT_N, DOT_PTX, JACOBI_PTX, dot_of, dot_vectors, jacobi_system
from benchmarks.requests import dot_request, jacobi_request, touching_request

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
COPIED_BYTES = 16 << 20
GROUPS = 16

Call = Callable[[], Any]
"""Makes one call; returns the reference to its result."""


def missing() -> str | None:
    """Say why there can be no cluster, or None."""
    return None if importlib.util.find_spec("ray") else "ray not installed"


class NumpyWork:
    """What a plain actor does where there is no GPU."""

    def __init__(self) -> None:
        self._b = dot_vectors()[1]

    def dot(self, a: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return np.array([np.sum(a * self._b, dtype=np.uint32)])

    def touch(self, x: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return ``x`` with its first numbers squared."""
        result = x.copy()
        result[:DOT_N] *= result[:DOT_N]
        return result


class CupyWork:
    """The same with CuPy, and the Jacobi solver as a CUDA graph on the bare driver."""

    def __init__(self) -> None:
        # An actor that reserves no GPU of Ray's sees none; the executor has reserved this one.
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
        import cupy

        from benchmarks.alternatives.cupy_dot import CupyDot

        self._cupy, self._dot = cupy, CupyDot()
        self._solve: Callable[[], NDArray[np.float64]] | None = None

    def dot(self, a: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return np.frombuffer(self._dot(a.tobytes()), np.uint32)

    def touch(self, x: NDArray[np.uint32]) -> NDArray[np.uint32]:
        on_device = self._cupy.asarray(x)
        on_device[:DOT_N] *= on_device[:DOT_N]
        result: NDArray[np.uint32] = self._cupy.asnumpy(on_device)
        return result

    def solve(self) -> NDArray[np.float64]:
        from benchmarks.alternatives import raw
        from benchmarks.alternatives.raw_jobs import raw_jacobi

        if self._solve is None:
            self._gpu = raw.Gpu().__enter__()
            job = raw_jacobi(self._gpu, *jacobi_system())
            launch = self._gpu.graph(job.stream, job.enqueue)

            def solve() -> NDArray[np.float64]:
                launch()
                raw.wait(job.stream)
                solution: NDArray[np.float64] = job.result.copy()
                return solution

            self._solve = solve
        return self._solve()


def main() -> None:
    """Start the cluster, check that all are right, and follow orders; the device is named on the command line."""
    import ray

    import kaas_client.ray as kaas_ray

    on_gpu = sys.argv[1].startswith("cuda")
    # Where an actor finds this package: its process has the environment of the one that started Ray.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "proto"), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=4, num_gpus=int(on_gpu), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    kaas_ray.init("auto" if on_gpu else "emulator", executors=1)
    remote: Any = ray.remote(num_cpus=0)
    actor_type = remote(CupyWork if on_gpu else NumpyWork)
    actors = [actor_type.remote()]
    library, jacobi = kaas_ray.upload(DOT_PTX), kaas_ray.upload(JACOBI_PTX)
    a, b = dot_vectors()
    b_ref = ray.put(b)
    dot = kaas_ray.remote(dot_request(library, constant=True)).options(returns=["c"])  # the actors hold ``b`` too
    x = np.random.default_rng(5).integers(0, 2**32, COPIED_BYTES // 4, dtype=np.uint32)
    x_ref = ray.put(x)
    touch = kaas_ray.remote(touching_request(library, COPIED_BYTES))
    calls: dict[str, dict[str, Call]] = {
        "dot": {"kaasd": lambda: dot.remote(a=a, b=b_ref), "actor": lambda: actors[0].dot.remote(a), **original_calls(ray, a, b)},
        "touch": {"kaasd": lambda: touch.remote(x=x_ref), "actor": lambda: actors[0].touch.remote(x_ref)},
    }
    if on_gpu:
        matrix, rhs = (ray.put(value) for value in jacobi_system())
        solver = kaas_ray.remote(jacobi_request(jacobi, "A", "rhs")).options(returns=["x"])
        calls["solve"] = {
            "kaasd": lambda: solver.remote(A=matrix, rhs=rhs),
            "actor": lambda: actors[0].solve.remote(),
        }
    for number in range(GROUPS):
        kaas_ray.set_group(f"group-{number}")
    grouped = [dot.options(group=f"group-{number}") for number in range(GROUPS)]

    def group_call(who: str, number: int) -> Any:
        return grouped[number].remote(a=a, b=b_ref) if who == "kaasd" else actors[number].dot.remote(a)

    check(ray, calls, dot_of(a, b), x)
    report(ready=True)
    for order in orders():
        who, work = order["who"], order["work"]
        if work == "groups":
            if who == "actor" and len(actors) == 1:
                actors += [actor_type.remote() for _ in range(GROUPS - 1)]
                ray.get([actor.dot.remote(a) for actor in actors])
            samples = [rate_of_all(ray, [partial(group_call, who, number) for number in range(GROUPS)], order["seconds"])]
        elif "in_flight" in order:
            samples = in_flight(ray, calls[work][who], order["in_flight"], order["calls"])
        else:
            samples = one_by_one(ray, calls[work][who], order["calls"])
        report(samples=samples)
    kaas_ray.shutdown()
    ray.shutdown()


def original_calls(ray: Any, a: NDArray[np.uint32], b: NDArray[np.uint32]) -> dict[str, Call]:
    """Return what makes a call as programs of the original KaaS do: by its actor, and through its pool."""
    import kaas_client.ray.original as kaas

    size = 4 * DOT_N
    inputs = [(kaas.bufferSpec(name, size, key=kaas.ray.putObj(value)), "i") for name, value in (("a", a), ("b", b))]
    products = kaas.bufferSpec("p", size, ephemeral=True)
    result = kaas.bufferSpec("c", 4, ephemeral=True)
    lengths = [kaas.literalSpec("Q", DOT_N)]
    product = kaas.kernelSpec(DOT_PTX, "prodKern", (1,), (DOT_N,), literals=lengths, arguments=[*inputs, (products, "t")])
    total = kaas.kernelSpec(DOT_PTX, "sumKern", (1,), (DOT_N // 2,), arguments=[(products, "i"), (result, "o")])
    request: tuple[Any, dict[str, str]] = (ray.put(kaas.kaasReq([product, total])), {})
    invokers: Any = kaas.ray.invokerActor
    actor = invokers.remote()
    pool = kaas.pool.Pool(1)
    pool.registerGroup("group", invokers)
    return {
        "invoker": lambda: ray.get(actor.invoke.remote(request))[0],
        "pool": lambda: ray.get(ray.get(pool.run("group", "invoke", args=[request]))),
    }


def check(ray: Any, calls: dict[str, dict[str, Call]], product: bytes, x: NDArray[np.uint32]) -> None:
    """Raise ``AssertionError`` where an answer is not NumPy's."""
    squared = x.copy()
    squared[:DOT_N] *= squared[:DOT_N]
    for who, call in calls["dot"].items():
        found = ray.get(call(), timeout=TIMEOUT_S)
        assert found.tobytes() == product, f"{who} computed another dot product"
    for who in ("kaasd", "actor"):
        np.testing.assert_array_equal(ray.get(calls["touch"][who](), timeout=TIMEOUT_S).view(np.uint32).ravel(), squared)
    if "solve" in calls:
        solutions = [ray.get(calls["solve"][who](), timeout=TIMEOUT_S).view(np.float64).ravel() for who in ("kaasd", "actor")]
        np.testing.assert_allclose(solutions[0], solutions[1])


def one_by_one(ray: Any, call: Call, number: int) -> list[float]:
    """Call again and again; return the seconds of each call."""
    samples = []
    for _ in range(number):
        start = time.perf_counter()
        ray.get(call(), timeout=TIMEOUT_S)
        samples.append(time.perf_counter() - start)
    return samples


def in_flight(ray: Any, call: Call, size: int, number: int) -> list[float]:
    """Keep ``size`` calls under way; return the share of each call in the time, as often as there are calls."""
    waiting: list[Any] = []
    start = time.perf_counter()
    for _ in range(number):
        if len(waiting) == size:
            done, waiting = ray.wait(waiting, timeout=TIMEOUT_S)
            ray.get(done)
        waiting.append(call())
    ray.get(waiting, timeout=TIMEOUT_S)
    return [(time.perf_counter() - start) / number] * number


def rate_of_all(ray: Any, calls: Sequence[Call], seconds: float) -> float:
    """Keep one call of each under way; return how many are answered in a second, all together."""
    start = time.perf_counter()
    waiting = {call(): call for call in calls}
    answered = 0
    while time.perf_counter() < start + seconds:
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=TIMEOUT_S)
        for reference in done:
            ray.get(reference)
            call = waiting.pop(reference)
            waiting[call()] = call
            answered += 1
    elapsed = time.perf_counter() - start
    ray.get(list(waiting))
    return answered / elapsed


if __name__ == "__main__":
    main()
