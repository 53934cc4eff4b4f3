"""Requests that the tests of this folder run."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from kaas_client import Kernel, Request, inp, out, tmp, u64

KERNELS = Path(__file__).parents[2] / "examples/kernels"
DOT = str(KERNELS / "dot.ptx")
FAULTS = str(KERNELS / "faults.ptx")
N = 1024
Words = NDArray[np.uint32]


CANCELLATIONS = 4
"""One that came within a millisecond of its call, or from a process that does not own it, was seen to have no effect for good."""


def cancel(reference: ray.ObjectRef[Any]) -> None:
    """Cancel a call, and return when it has ended: what goes on would keep an executor from the next test."""
    for _ in range(CANCELLATIONS):
        ray.cancel(reference)
        if ray.wait([reference], timeout=10)[0]:
            return
    raise AssertionError("a call that was cancelled goes on")


def dot_request(**of_a: Any) -> Request:
    """Return the dot product of two vectors of ``N`` words; ``of_a`` is more to say of the first."""
    size = 4 * N
    product = Kernel(DOT, "prodKern", grid=1, block=N, args=[u64(N), inp("a", size, **of_a), inp("b", size), tmp("p", size)])
    return Request([product, Kernel(DOT, "sumKern", grid=1, block=N // 2, args=[inp("p"), out("c", dtype="u4")])])


def product_kernel(n: int, **of_p: Any) -> Kernel:
    """Return the product of two vectors of ``n`` words, a multiple of 1024, element by element, as an output.

    ``of_p`` is more to say of it than its size.
    """
    size = 4 * n
    args = [u64(n), inp("a", size), inp("b", size), out("p", size, **{"dtype": "u4", "shape": n} | of_p)]
    return Kernel(DOT, "prodKern", grid=n // 1024, block=1024, args=args)


def product_request(n: int, **of_p: Any) -> Request:
    """Return the request of ``product_kernel`` alone."""
    return Request([product_kernel(n, **of_p)])


def scaled_request(n: int) -> Request:
    """Return the product of a vector and a constant one."""
    size = 4 * n
    args = [u64(n), inp("x", size), inp("weights", size, constant=True), out("y", dtype="u4", shape=n)]
    return Request([Kernel(DOT, "prodKern", grid=n // 1024, block=1024, args=args)])


def product_and_dot_request() -> Request:
    """Return both the product of two vectors of ``N`` words and its sum."""
    return Request([product_kernel(N), Kernel(DOT, "sumKern", grid=1, block=N // 2, args=[inp("p"), out("c", dtype="u4")])])


ZERO, ONE = np.zeros(1, np.uint32), np.ones(1, np.uint32)


def spin_request() -> Request:
    """Return what never ends where the word ``flag`` is 0, and otherwise returns 1."""
    spin = Kernel(FAULTS, "spinKern", args=[inp("flag", 4)])
    return Request([spin, Kernel(FAULTS, "writeAtKern", args=[u64(0), out("c", dtype="u4")])])


def vectors(seed: int, n: int = N) -> tuple[Words, Words]:
    """Return two random vectors."""
    a, b = np.random.default_rng(seed).integers(0, 2**32, (2, n), dtype=np.uint32)
    return a, b


@ray.remote(num_cpus=0)
def when(path: Path, value: Any) -> Any:
    """Return the value once there is such a file."""
    ticks = threading.Event()
    while not path.exists():
        ticks.wait(0.01)
    return value


def pid_of(actor: Any) -> int:
    """Return the process that an actor is in now."""
    pid: int = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=240)
    return pid
