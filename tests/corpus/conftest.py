"""The record of what an H100 computed, which every device must compute to the bit.

``KAAS_CORPUS_RECORD=tests/corpus/h100.npz pytest tests/corpus -m gpu`` writes a new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kaasd.devices.base import Device
from tests.corpus.running import Corpus

RECORD = Path(__file__).parent / "h100.npz"


@pytest.fixture(scope="session")
def corpus(device: Device) -> Corpus:
    """The corpus on this device."""
    return Corpus(device)


@pytest.fixture(scope="session")
def record() -> Iterator[dict[str, np.ndarray]]:
    """The recorded arrays by test and name; what is in it at the end is written if the environment asks for a record."""
    path = os.environ.get("KAAS_CORPUS_RECORD")
    if path:
        arrays: dict[str, np.ndarray] = {}
        yield arrays
        np.savez_compressed(path, **arrays)
    else:
        with np.load(RECORD) as stored:
            yield dict(stored)


@pytest.fixture
def same_as_gpu(request: pytest.FixtureRequest, record: dict[str, np.ndarray]) -> Callable[..., None]:
    """Check that arrays are those that the GPU gave in this test. Only for results that PTX defines to the bit."""

    def check(**results: np.ndarray) -> None:
        for name, result in results.items():
            key = f"{request.path.stem}.{request.function.__name__}.{name}"
            if "KAAS_CORPUS_RECORD" in os.environ:
                record[key] = result
            expected = record[key]
            assert (result.dtype, result.shape) == (expected.dtype, expected.shape), key
            bits = f"u{result.itemsize}"
            different = np.flatnonzero(result.ravel().view(bits) != expected.ravel().view(bits))
            first = different[:1]
            assert not len(different), (
                f"{key}: {len(different)} of {result.size} differ, the first at {first[0]}: "
                f"{result.ravel()[first]} where the GPU has {expected.ravel()[first]}"
            )

    return check
