"""PTX from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kaas_client import inp, out, u64
from kaas_client.kernels import ptx
from tests.kernels.catalogue import Case, Shows, shows

DOT = Path(__file__).parents[3] / "examples/kernels/dot.ptx"


@shows(Shows.POINTERS)
def products() -> Case:
    a = np.random.default_rng(1).integers(0, 2**32, 1000, dtype=np.uint32)
    launch = ptx(DOT)["prodKern"][8, 128](u64(1000), inp("a"), inp("b"), out("c", dtype="u4", shape=1000))
    return Case(launch, {"a": a, "b": a[::-1].copy()}, {"c": a * a[::-1]})
