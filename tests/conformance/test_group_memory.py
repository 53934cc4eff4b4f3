"""A group's limit on device memory, over a daemon's socket."""

from __future__ import annotations

import numpy as np
import pytest

from kaas_client import Client, Kernel, Key, Request, inp, out, u64
from kaas_client.errors import GroupLimitError

N = 1 << 18
SIZE = 4 * N


@pytest.fixture
def product(dot: str) -> Request:
    arguments = [u64(N), inp("a", SIZE), inp("b", SIZE), out("p", SIZE, ephemeral=True)]
    return Request([Kernel(dot, "prodKern", N // 256, 256, arguments)])


def test_a_group_takes_no_more_of_a_device_than_it_may(kaas: Client, product: Request) -> None:
    values = [np.full(N, number, np.uint32) for number in range(6)]
    for number, value in enumerate(values):
        kaas.put(f"value-{number}", value)
    kaas.register("multiply", product)
    kaas.set_group("small", max_device_memory_bytes=4 * SIZE)
    try:
        for _ in range(2):
            for a in range(0, 6, 2):
                keys = {"a": f"value-{a}", "b": f"value-{a + 1}"}
                result = kaas.function("multiply").options(group="small", returns=["p"])(
                    **{name: Key(key) for name, key in keys.items()}
                )
                assert (result.array("p", "u4") == values[a] * values[a + 1]).all()
        kaas.set_group("small", max_device_memory_bytes=3 * SIZE - 1)
        with pytest.raises(GroupLimitError) as error:
            kaas.submit(product, inputs={"a": values[0], "b": values[1]}, group="small")
        assert error.value.metadata == {"group": "small", "limit": "max_device_memory_bytes"}
        kaas.submit(product, inputs={"a": values[0], "b": values[1]})
    finally:
        kaas.delete_group("small")


def test_a_value_for_two_buffers_counts_once(kaas: Client, product: Request) -> None:
    value = np.full(N, 3, np.uint32)
    kaas.put("twice", value)
    kaas.put("other", value)
    kaas.register("square", product)
    kaas.set_group("small", max_device_memory_bytes=2 * SIZE)
    try:
        square = kaas.function("square").options(group="small", returns=["p"])
        assert (square(a=Key("twice"), b=Key("twice")).array("p", "u4") == 9).all()
        for bindings in ({"a": Key("twice"), "b": Key("other")}, {"a": Key("twice"), "b": value}):
            with pytest.raises(GroupLimitError):
                square(**bindings)
    finally:
        kaas.delete_group("small")
