"""A device that has less memory than the executor believes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kaas_core.errors import OutOfDeviceMemoryError
from kaasd.devices.options import EmulatorOptions
from kaasd.devices.registry import open_device
from kaasd.libraries.registry import Libraries
from kaasd.store.lmdb_store import LmdbStore
from kaasd.worker.executor import Executor
from tests.conformance.launching import library
from tests.conformance.test_executor import LARGE, Bench, numbers


def test_what_the_device_lacks_is_given_up_and_asked_for_again(tmp_path: Path) -> None:
    with (
        LmdbStore(tmp_path / "store", limit_bytes=256 << 20) as store,
        closing(open_device("emulator", EmulatorOptions(memory_bytes=13 * LARGE))) as device,
    ):
        libraries = Libraries(store)
        libraries.put(libraries.describe(library("dot")), library("dot"))
        with closing(Executor(device, store, libraries, memory_limit_bytes=1 << 40)) as executor:
            bench = Bench(executor, store)
            for seed in range(4):
                bench.put(f"v{seed}", numbers(seed, LARGE))
                bench.run(bench.multiply(LARGE), {"a": f"v{seed}", "b": f"v{seed}", "p": f"p{seed}"})
                bench.run(bench.multiply(LARGE), {"a": f"v{seed}", "b": "v0", "p": f"q{seed}"})
                assert np.array_equal(bench.get(f"q{seed}"), numbers(seed, LARGE) * numbers(0, LARGE))
            with pytest.raises(OutOfDeviceMemoryError, match=str(24 * LARGE)):
                bench.run(bench.multiply(2 * LARGE), inputs=dict.fromkeys("ab", bytes(8 * LARGE)))
