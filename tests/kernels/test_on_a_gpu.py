"""Compiled kernels on a real GPU, whose driver takes older PTX than the newest compilers write."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from examples.local_daemon import local_daemon
from kaas_client import Client, f32, inout, inp, out, u64
from kaas_client.kernels import cuda

pytestmark = pytest.mark.gpu

N = 100_000
SOURCE = """
template <typename T> __global__ void saxpy(T a, const T* x, T* y, unsigned long n)
{
    unsigned long i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
"""


@pytest.fixture(scope="module")
def kaas() -> Iterator[Client]:
    with local_daemon("--device", "cuda:0", "--log-level", "WARNING") as address, Client(address, timeout=100) as client:
        yield client


def test_cuda(kaas: Client) -> None:
    x, y = np.arange(N, dtype=np.float32), np.ones(N, np.float32)
    f = kaas.bind(cuda(source=SOURCE)["saxpy<float>"][(N + 255) // 256, 256](f32(2), inp("x"), inout("y"), u64(N)))
    for _ in range(3):
        assert np.array_equal(f(x=x, y=y)["y"], 2 * x + y)


def test_triton(kaas: Client) -> None:
    pytest.importorskip("triton", reason="the compiler is an extra")
    from kaas_client.kernels import triton
    from tests.kernels.triton_kernels import add

    x, y = np.arange(N, dtype=np.float32), np.ones(N, np.float32)
    add_of = triton(add, {"x": "*fp32", "y": "*fp32", "z": "*fp32", "n": "i32"}, {"BLOCK": 1024})
    f = kaas.bind(add_of[(N + 1023) // 1024](inp("x"), inp("y"), out("z", dtype="f4", shape=N), N))
    assert np.array_equal(f(x=x, y=y)["z"], x + y)


def test_what_the_device_takes(kaas: Client) -> None:
    (device,) = kaas.devices()
    assert device.max_ptx_version >= 80
    assert f"sm_{device.compute_capability.replace('.', '')}" in device.targets
