"""A bare process that runs a dot product, then a kernel that faults when it is told to, and ends. Another takes its place."""

from __future__ import annotations

import ctypes
import os
import sys

from benchmarks.alternatives import raw
from benchmarks.alternatives.raw_jobs import raw_dot
from benchmarks.crew import report
from benchmarks.problems import DOT_PTX, FAULTS_PTX, dot_of, dot_vectors
from benchmarks.requests import OUT_OF_BOUNDS


def main() -> None:
    """Say when the result is there; a line of standard input says which fault comes then."""
    a, b = dot_vectors()
    with raw.Gpu() as gpu:
        job, a_host = raw_dot(gpu, b, DOT_PTX, "")
        faults = gpu.module(FAULTS_PTX)
        a_host[:] = a
        job.enqueue(job.stream)
        raw.wait(job.stream)
        report(equal=job.result.tobytes() == dot_of(a, b))
        kernel = sys.stdin.readline().strip()
        if kernel:
            index = [ctypes.c_uint64(OUT_OF_BOUNDS)] if kernel == "writeAtKern" else []
            raw.Launch(gpu.kernel(faults, kernel), 1, 1, [*index, gpu.allocate(4)]).on(job.stream)
            try:
                raw.wait(job.stream)
            except raw.CudaError:
                os._exit(70)


if __name__ == "__main__":
    main()
