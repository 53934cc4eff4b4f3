"""A new process that runs one dot product on a bare GPU: what a function costs that has no warm service to run in."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.alternatives import raw
from benchmarks.alternatives.raw_jobs import raw_dot
from benchmarks.crew import report
from benchmarks.problems import dot_of, dot_vectors


def main() -> None:
    """Load the library, a cubin or PTX, run, check, and say so. The command line names the file and its kernels' suffix.

    With a third argument, keep the context until standard input ends.
    """
    path, suffix = Path(sys.argv[1]), sys.argv[2]
    a, b = dot_vectors()
    with raw.Gpu() as gpu:
        job, a_host = raw_dot(gpu, b, path, suffix)
        a_host[:] = a
        job.enqueue(job.stream)
        raw.wait(job.stream)
        report(equal=job.result.tobytes() == dot_of(a, b))
        if len(sys.argv) > 3:
            sys.stdin.read()


if __name__ == "__main__":
    main()
