"""What a request promises, through the real daemon, on every device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from examples.workloads import Workload, blur, dot_product, jacobi
from kaas_client import Client, Kernel, Key, Request, inout, inp, out, tmp, u32, u64
from kaas_core.errors import KaasError, KernelFaultError, KeyNotFoundError, UnavailableError, ValueTooShortError
from tests.conformance.launching import KERNELS

N = 1024


@pytest.fixture(scope="module")
def faults(kaas: Client) -> str:
    """The library ``faults``: ``expectKern(n, value, in)`` traps unless every element is ``value``."""
    return kaas.upload(KERNELS / "faults.ptx")


def numbers(seed: int, n: int = N) -> np.ndarray:
    """Return n random uint32."""
    return np.random.default_rng(seed).integers(0, 2**32, n, dtype=np.uint32)


def product(library: str, a: object, b: object, p: object, n: int = N) -> Kernel:
    """Return p = a * b over n elements."""
    return Kernel(library, "prodKern", grid=-(-n // 256), block=256, args=[u64(n), a, b, p])


def expect(library: str, value: int, buffer: object, n: int = N) -> Kernel:
    """Return a kernel that faults unless all n elements of the buffer are ``value``."""
    return Kernel(library, "expectKern", grid=-(-n // 256), block=256, args=[u64(n), u32(value), buffer])


@pytest.mark.parametrize("workload", [dot_product, jacobi, blur])
def test_the_workloads_of_the_demo(workload: Callable[[Client], Workload], kaas: Client, device_name: str) -> None:
    prepared = workload(kaas)
    for key, value in prepared.inputs.items():
        kaas.put(key, value)
    result = kaas.submit(prepared.request)
    assert result.device == device_name
    assert prepared.check(kaas)


def test_outputs_are_committed_with_a_new_version(kaas: Client, dot: str) -> None:
    a, b = numbers(1), numbers(2)
    kaas.put("a", a)
    kaas.put("b", b)
    request = Request([product(dot, inp("a", 4 * N), inp("b", 4 * N), out("p", 4 * N))])
    first = kaas.submit(request)
    second = kaas.submit(request)
    np.testing.assert_array_equal(kaas.get("p", dtype="u4"), a * b)
    assert first.versions.keys() == {"p"}
    assert second.versions["p"] > first.versions["p"] > kaas.stat("b").version
    assert kaas.stat("p").version == second.versions["p"]


def test_a_new_value_is_never_missed(kaas: Client, dot: str) -> None:
    request = Request([product(dot, inp("a", 4 * N), inp("b", 4 * N), out("p", 4 * N))])
    kaas.put("b", numbers(3))
    for seed in range(20):
        kaas.put("a", numbers(seed))
        kaas.submit(request)
        np.testing.assert_array_equal(kaas.get("p", dtype="u4"), numbers(seed) * numbers(3))


def test_the_output_of_one_request_is_the_input_of_the_next(kaas: Client, dot: str) -> None:
    kaas.put("x", numbers(4))
    square = Request([product(dot, inp("x", 4 * N), inp("x"), out("y", 4 * N, key="x"))])
    expected = numbers(4)
    for _ in range(10):
        kaas.submit(square)
        expected = expected * expected
    np.testing.assert_array_equal(kaas.get("x", dtype="u4"), expected)


def test_iterations_run_one_after_the_other(kaas: Client, dot: str) -> None:
    kaas.put("x", numbers(5))
    kaas.put("m", numbers(6))
    kaas.submit(Request([product(dot, inp("m", 4 * N), inout("x", 4 * N), inout("x"))], iterations=37))
    expected = numbers(5)
    for _ in range(37):
        expected = expected * numbers(6)
    np.testing.assert_array_equal(kaas.get("x", dtype="u4"), expected)


def test_what_is_not_loaded_starts_as_zeros(kaas: Client, dot: str, faults: str) -> None:
    kaas.put("a", np.full(N, 7, np.uint32))
    kaas.put("p", numbers(8))
    dirty = Request([product(dot, inp("a", 4 * N), inp("a"), tmp("scratch", 4 * N))])
    clean = Request([expect(faults, 0, tmp("scratch", 4 * N)), expect(faults, 0, out("p", 4 * N))])
    for _ in range(3):
        kaas.submit(dirty)
        kaas.submit(clean)
    assert kaas.get("p") == bytes(4 * N)


def test_an_ephemeral_buffer_touches_no_key_and_can_be_returned(kaas: Client, dot: str) -> None:
    kaas.put("a", numbers(9))
    kaas.put("scratch", b"not to be touched")
    request = Request([product(dot, inp("a", 4 * N), inp("a"), out("scratch", 4 * N, ephemeral=True))])
    result = kaas.submit(request, returns=["scratch", "a"])
    np.testing.assert_array_equal(result.array("scratch", "u4"), numbers(9) * numbers(9))
    np.testing.assert_array_equal(result.array("a", "u4"), numbers(9))
    assert not result.versions
    assert kaas.get("scratch") == b"not to be touched"


def test_inline_inputs_are_used_and_not_stored(kaas: Client, dot: str) -> None:
    kaas.put("a", numbers(10))
    kaas.put("b", numbers(11))
    request = Request([product(dot, inp("a", 4 * N), inp("b", 4 * N), out("p", 4 * N))])
    result = kaas.submit(request, inputs={"a": numbers(12)}, returns=["p"])
    np.testing.assert_array_equal(result.array("p", "u4"), numbers(12) * numbers(11))
    np.testing.assert_array_equal(kaas.get("p", dtype="u4"), numbers(12) * numbers(11))
    np.testing.assert_array_equal(kaas.get("a", dtype="u4"), numbers(10))


def test_a_part_of_a_value_is_read_and_written_in_place(kaas: Client, dot: str) -> None:
    whole = numbers(13, 4 * N)
    kaas.put("whole", whole)
    request = Request(
        [
            product(
                dot,
                inp("third", 4 * N, key="whole", offset=8 * N),
                inp("third"),
                out("second", 4 * N, key="whole", offset=4 * N),
            )
        ]
    )
    kaas.submit(request)
    expected = whole.copy()
    expected[N : 2 * N] = whole[2 * N : 3 * N] * whole[2 * N : 3 * N]
    np.testing.assert_array_equal(kaas.get("whole", dtype="u4"), expected)


def test_a_buffer_read_and_written_keeps_the_rest_of_its_value(kaas: Client, dot: str) -> None:
    whole = numbers(14, 2 * N)
    kaas.put("whole", whole)
    kaas.submit(Request([product(dot, inout("whole", 4 * N), inp("whole"), inout("whole"))]))
    expected = whole.copy()
    expected[:N] *= whole[:N]
    np.testing.assert_array_equal(kaas.get("whole", dtype="u4"), expected)


def test_an_output_beyond_its_value_is_refused(kaas: Client, dot: str) -> None:
    kaas.put("a", numbers(15))
    kaas.put("short", bytes(4 * N))
    request = Request([product(dot, inp("a", 4 * N), inp("a"), out("short", 4 * N, offset=4))])
    with pytest.raises(ValueTooShortError):
        kaas.submit(request)
    assert kaas.get("short") == bytes(4 * N)


def test_all_outputs_or_none(kaas: Client, dot: str) -> None:
    kaas.put("a", numbers(16))
    kaas.put("first", b"as it was")
    request = Request(
        [
            product(dot, inp("a", 4 * N), inp("a"), out("first", 4 * N)),
            product(dot, inp("a"), inp("a"), out("second", 4 * N, key="no such key", offset=4)),
        ]
    )
    with pytest.raises(KaasError) as caught:
        kaas.submit(request)
    assert isinstance(caught.value, (KeyNotFoundError, ValueTooShortError))
    assert kaas.get("first") == b"as it was"


def test_a_value_larger_than_a_chunk(kaas: Client, dot: str) -> None:
    n = 5 * (1 << 20)
    x = np.arange(n, dtype=np.uint32)
    kaas.put("large", x)
    kaas.submit(Request([product(dot, inp("large", 4 * n), inp("large"), out("squares", 4 * n), n=n)]))
    np.testing.assert_array_equal(kaas.get("squares", dtype="u4"), x * x)
    kaas.delete("large")
    kaas.delete("squares")


def test_a_function_is_invoked_with_its_buffers_bound_anew(kaas: Client, dot: str) -> None:
    kaas.put("a", numbers(17))
    kaas.put("other", numbers(18))
    multiply = kaas.register("multiply", Request([product(dot, inp("a", 4 * N), inp("b", 4 * N), out("p", 4 * N))]))
    result = multiply(b=numbers(19))
    np.testing.assert_array_equal(result.array("p", "u4"), numbers(17) * numbers(19))
    result = multiply(a=Key("other"), b=numbers(19), p=Key("elsewhere"))
    assert result.versions.keys() == {"elsewhere"}
    np.testing.assert_array_equal(kaas.get("elsewhere", dtype="u4"), numbers(18) * numbers(19))
    np.testing.assert_array_equal(kaas.get("p", dtype="u4"), numbers(17) * numbers(19))
    kaas.delete_function("multiply")


def test_a_stream_answers_every_invocation(kaas: Client, dot: str) -> None:
    kaas.register("square", Request([product(dot, inp("a", 4 * N), inp("a"), out("p", 4 * N, ephemeral=True))]))
    with kaas.stream() as stream:
        futures = {seed: stream.submit("square", {"a": numbers(seed)}, returns=["p"]) for seed in range(200)}
        for seed, future in futures.items():
            np.testing.assert_array_equal(future.result().array("p", "u4"), numbers(seed) * numbers(seed))


def test_a_fault_hurts_no_later_request(kaas: Client, dot: str, faults: str) -> None:
    kaas.put("a", numbers(20))
    kaas.put("p", b"as it was")
    good = product(dot, inp("a", 4 * N), inp("a"), out("p", 4 * N))
    with pytest.raises(KernelFaultError) as caught:
        kaas.submit(Request([good, expect(faults, 1, inp("a"))]))
    assert (caught.value.metadata["kernel_index"], caught.value.metadata["kernel"]) == ("1", "expectKern")
    assert kaas.get("p") == b"as it was"
    while True:
        try:
            kaas.submit(Request([good]))
            break
        except UnavailableError:  # The device was lost, and its worker is not back yet.
            continue
    np.testing.assert_array_equal(kaas.get("p", dtype="u4"), numbers(20) * numbers(20))
