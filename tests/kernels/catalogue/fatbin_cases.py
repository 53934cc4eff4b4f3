"""A fatbin that nvcc made: the emulated device takes the PTX in it, a GPU its machine code."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kaas_client import inout, inp, out, tmp, u32
from kaas_client.kernels import fatbin
from tests.kernels.catalogue import Case, Shows, shows

kernels = fatbin(Path(__file__).parents[2] / "conformance/data/variables.fatbin")


@shows(Shows.POINTERS)
def constants() -> Case:
    """Factors from constant memory."""
    x = np.random.default_rng(1).random(600, np.float32)
    launch = kernels["scaleKern"][5, 128](u32(600), inout("x"))
    return Case(launch, {"x": x}, {"x": x * np.tile(np.float32([0.5, -2, 3]), 200)})


@shows(Shows.POINTERS)
def last_block() -> Case:
    """The last block to come adds up what all have."""
    x = np.random.default_rng(2).integers(0, 2**32, 5000, dtype=np.uint32)
    launch = kernels["totalKern"][20, 32](
        u32(5000), u32(0), inp("x"), tmp("parts", dtype="u4", shape=20), out("total", dtype="u4", shape=1)
    )
    return Case(launch, {"x": x}, {"total": x.sum(keepdims=True, dtype=np.uint32)})
