"""The settings of device memory and concurrency, through the real daemon."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from examples.local_daemon import local_daemon
from kaas_client import Client, Kernel, Key, Request, inp, out, u64
from kaas_core.errors import OutOfDeviceMemoryError

KERNELS = Path(__file__).parent.parent.parent / "examples/kernels"
LIMIT = 1 << 20


def square(library: str, n: int) -> Request:
    """Return the request p = a * a over n uint32."""
    return Request([Kernel(library, "prodKern", -(-n // 256), 256, [u64(n), inp("a", 4 * n), inp("a"), out("p", 4 * n)])])


def test_many_callers_share_little_memory(device_name: str) -> None:
    n = 80_000  # 640 KB a request
    with (
        local_daemon("--device", device_name, "--device-memory", str(LIMIT), "--concurrency", "4") as address,
        Client(address, timeout=90) as kaas,
    ):
        library = kaas.upload(KERNELS / "dot.ptx")
        squared = kaas.register("square", square(library, n))
        values = [np.random.default_rng(seed).integers(0, 2**32, n, dtype=np.uint32) for seed in range(8)]
        for index, value in enumerate(values):
            kaas.put(f"a{index}", value)

        def call(index: int) -> np.ndarray:
            squared(a=Key(f"a{index}"), p=Key(f"p{index}"))
            return kaas.get(f"p{index}", dtype="u4")

        with ThreadPoolExecutor(8) as callers:
            for value, result in zip(values * 3, callers.map(call, list(range(8)) * 3), strict=True):
                np.testing.assert_array_equal(result, value * value)

        kaas.put("a", np.zeros(LIMIT // 4, np.uint32))
        with pytest.raises(OutOfDeviceMemoryError) as error:
            kaas.submit(square(library, LIMIT // 4))
        assert error.value.metadata["limit_bytes"] == str(LIMIT)
        assert error.value.metadata["asked_bytes"] == str(2 * LIMIT)
