"""Groups of every priority get the same answers, beside each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kaas_client import Client, Kernel, Request, inp, out, u64

N, CALLS = 1024, 6
PRIORITIES = {"back": -3, "middle": 0, "one": 1, "front": 100}


def test_groups_of_all_priorities_beside_each_other(kaas: Client, dot: str) -> None:
    """Several calls each, since a GPU launches what comes again in another way."""
    arguments = [u64(N), inp("a", 4 * N), inp("a"), out("p", 4 * N, ephemeral=True)]
    request = Request([Kernel(dot, "prodKern", 1, N, arguments)] * 3)
    for name, priority in PRIORITIES.items():
        kaas.set_group(name, priority=priority)

    def call(number: int) -> bool:
        a = np.full(N, number, np.uint32)
        result = kaas.submit(request, inputs={"a": a}, returns=["p"], group=[*PRIORITIES][number % len(PRIORITIES)])
        return bool((result.array("p", "u4") == a * a).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(call, range(CALLS * len(PRIORITIES))))
    for name in PRIORITIES:
        assert kaas.group(name).use.started == CALLS
        kaas.delete_group(name)
