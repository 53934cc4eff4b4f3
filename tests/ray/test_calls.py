"""What a call is on its way to an executor."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

import numpy as np
import pytest
import ray

import kaas_client.ray as kaas_ray
from kaas_client.ray.references import Carried, Carrier
from kaas_client.ray.tasks import INLINE_BYTES, TaskCall
from tests.ray.support import dot_request, product_request, scaled_request, vectors

FIRST = {"executor": "emulator:0"}
WITHIN_S = 60
LARGE = 1 << 16
"""Words of a vector: 256 KiB, too large to travel by value."""


def test_a_call_and_its_values_are_what_they_were() -> None:
    values = [memoryview(b"abc"), memoryview(b""), memoryview(bytes(range(256)))]
    names = [("a", 3, ""), ("b", 0, "0a" * 28), ("c", 256, "")]
    call = TaskCall(b"digest", [("d", "")], names, [("e", "0b" * 28)], deadline_s=1.5, max_retries=2, group="team", priority=-1)
    found, inline = TaskCall.from_bytes(call.to_bytes(values))
    assert found == call
    assert inline == {"a": b"abc", "b": b"", "c": bytes(range(256))}


@pytest.mark.usefixtures("cluster")
class TestOnACluster:
    def test_references_are_made_of_what_was_carried(self) -> None:
        @ray.remote
        def values_of(carried: Carried, start: int) -> Sequence[Any]:
            assert isinstance(carried, Carried)
            return [carried.content, *ray.get(carried.references(start))]

        first, second = ray.put("first"), ray.put("second")
        carrier = Carrier(b"content", [first, second])
        assert ray.get(values_of.remote(carrier, 0)) == [b"content", "first", "second"]
        assert ray.get(values_of.remote(carrier, 1)) == [b"content", "second"]

    @pytest.mark.parametrize("n", [1024, LARGE])
    def test_what_a_call_refers_to_is_there_when_its_caller_forgets_it(self, n: int) -> None:
        scaled = kaas_ray.remote(scaled_request(n)).options(**FIRST)
        x, weights = (each.repeat(n // 1024) for each in vectors(60))
        reference = ray.put(weights)
        result = scaled.remote(x=x, weights=reference)
        del reference
        assert np.array_equal(ray.get(result), x * weights)

    def test_inputs_that_are_too_many_to_travel_with_the_call_come_beside_it(self) -> None:
        n = INLINE_BYTES // 4 // 1024 * 1024  # one fits
        a, b = (each.repeat(n // 1024) for each in vectors(61))
        product = kaas_ray.remote(product_request(n)).options(**FIRST)
        assert np.array_equal(ray.get(product.remote(a=a, b=b)), a * b)
        assert np.array_equal(ray.get(product.remote(a=ray.put(a), b=b)), a * b)

    def test_a_constant_that_is_an_error_fails_the_call(self) -> None:
        @ray.remote
        def broken() -> None:
            raise ValueError("no weights")

        reference = broken.remote()
        ray.wait([reference])
        x, _ = vectors(62)
        with pytest.raises(ray.exceptions.RayTaskError, match="no weights"):
            ray.get(kaas_ray.remote(scaled_request(1024)).options(**FIRST).remote(x=x, weights=reference))

    def test_calls_that_are_known_to_be_quick_are_right_too(self) -> None:
        dot = kaas_ray.remote(dot_request())
        a, b = vectors(63)
        expected = np.sum(a * b, dtype=np.uint32)
        lanes: set[str | None] = set()
        deadline = monotonic() + WITHIN_S
        while "quick" not in lanes:
            assert monotonic() < deadline
            assert all(int(each) == expected for each in ray.get([dot.remote(a=a, b=b) for _ in range(50)]))
            lanes |= {lane for _, lane, _ in dot._methods}
