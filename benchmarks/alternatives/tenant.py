"""A process that solves Jacobi systems on a bare GPU, each on a stream of its own: as a CUDA graph, or launch by launch.

With one stream it is a tenant among other such processes; with many it is what one process can do without a service around it.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.alternatives import raw
from benchmarks.alternatives.raw_jobs import raw_jacobi
from benchmarks.crew import orders, report
from benchmarks.problems import JACOBI_LAUNCHES, jacobi_system


def main() -> None:
    """Follow orders; the most streams of one, and the launches of a job, are named on the command line."""
    streams = int(sys.argv[1])
    launches = int(sys.argv[2]) if len(sys.argv) > 2 else JACOBI_LAUNCHES
    # A wait that spins would take a core for each process or thread.
    with raw.Gpu(waiting=raw.BLOCKING) as gpu, ThreadPoolExecutor(streams) as threads:
        jobs = [raw_jacobi(gpu, *jacobi_system(seed), launches) for seed in range(streams)]
        launchers = [gpu.graph(job.stream, job.enqueue) for job in jobs]

        def solve(number: int, end: float, graph: bool = True) -> int:
            solved = 0
            gpu.enter_thread()
            job = jobs[number]
            while time.perf_counter() < end:
                if graph:
                    launchers[number]()
                else:
                    job.enqueue(job.stream)
                raw.wait(job.stream)
                solved += 1
            return solved

        for number in range(streams):
            solve(number, time.perf_counter() + 1e-3)
        report(ready=True)
        for order in orders():
            start = time.perf_counter()
            end = start + order["seconds"]
            running = [threads.submit(solve, i, end, order["graph"]) for i in range(order["streams"])]
            solved = sum(future.result() for future in running)
            report(jobs=solved, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
