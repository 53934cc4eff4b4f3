"""What a request promises, through the real daemon, on every device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from examples.workloads import Workload, blur, dot_product, jacobi
from kaas_client import AsyncClient, Client, Kernel, Key, Request, inout, inp, out, tmp, u32, u64
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


@pytest.mark.parametrize("workload", [dot_product, partial(jacobi, n=128), blur], ids=["dot", "jacobi", "blur"])
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


async def submitted_by_asyncio(
    address: str, request: Request, inputs: dict[str, np.ndarray], returns: list[str]
) -> dict[str, bytes]:
    async with AsyncClient(address) as kaas:
        result = await kaas.submit(request, inputs=inputs, returns=returns)
    return dict(result.outputs)


LARGE = 64 * N
"""Elements: more than what travels with the launches."""


def ephemeral_request(dot: str, n: int) -> Request:
    """Return x = x * a, twice, where no buffer touches the store."""
    a, x = inp("a", 4 * n, ephemeral=True), inout("x", 4 * n, ephemeral=True)
    return Request([product(dot, a, x, x, n), product(dot, a, x, x, n)])


def in_every_way(kaas: Client, request: Request, inputs: dict[str, np.ndarray], returns: list[str]) -> list[dict[str, bytes]]:
    """Return what a request gives when it is submitted, invoked, and invoked over a stream."""
    kaas.register("in_every_way", request)
    with kaas.stream() as stream:
        streamed = stream.submit("in_every_way", inputs, returns=returns).result()
    from_json = Request.from_json(request.to_json())
    results = (
        kaas.submit(request, inputs=inputs, returns=returns),
        kaas.submit(from_json, inputs=inputs, returns=returns),
        kaas.invoke("in_every_way", inputs, returns=returns),
        streamed,
    )
    by_asyncio = asyncio.run(submitted_by_asyncio(kaas.address, request, inputs, returns))
    return [by_asyncio, *(dict(result.outputs) for result in results)]


@pytest.mark.parametrize("n", [N, LARGE])
def test_bytes_of_a_call_are_the_content_of_an_ephemeral_buffer(n: int, kaas: Client, dot: str) -> None:
    a, x = numbers(20, n), numbers(21, n)
    found = in_every_way(kaas, ephemeral_request(dot, n), {"a": a, "x": x}, ["x", "a"])
    assert found == [{"x": (x * a * a).tobytes(), "a": a.tobytes()}] * 5


@pytest.mark.parametrize("n", [N, LARGE])
def test_an_ephemeral_buffer_without_bytes_is_zeros_whatever_the_call_before_gave(n: int, kaas: Client, dot: str) -> None:
    request = ephemeral_request(dot, n)
    a, x = numbers(22, n), numbers(23, n)
    for _ in range(3):
        assert kaas.submit(request, inputs={"a": a, "x": x}, returns=["x"])["x"] == (x * a * a).tobytes()
        assert kaas.submit(request, inputs={"a": a}, returns=["x"])["x"] == bytes(4 * n)
        assert kaas.submit(request, inputs={"x": x}, returns=["x", "a"]).outputs == {"x": bytes(4 * n), "a": bytes(4 * n)}
        assert kaas.submit(request, returns=["x"])["x"] == bytes(4 * n)


@pytest.mark.parametrize("n", [N, LARGE])
def test_bytes_of_a_call_become_the_value_of_a_key_that_is_missing(n: int, kaas: Client, dot: str) -> None:
    kaas.put("m", numbers(24, n))
    request = Request([product(dot, inp("m", 4 * n), inout("fresh", 4 * n), inout("fresh"), n)])
    x = numbers(25, n)
    for _ in range(2):  # missing, then there
        kaas.submit(request, inputs={"fresh": x})
        np.testing.assert_array_equal(kaas.get("fresh", dtype="u4"), x * numbers(24, n))
    kaas.delete("fresh")


def test_bytes_of_a_call_replace_their_range_of_a_longer_value(kaas: Client, dot: str) -> None:
    kaas.put("m", numbers(26))
    old, x = numbers(27, 3 * N), numbers(28)
    for offset in (0, N, 2 * N):
        kaas.put("longer", old)
        buffer = inout("longer", 4 * N, offset=4 * offset)
        kaas.submit(Request([product(dot, inp("m", 4 * N), buffer, inout("longer"))]), inputs={"longer": x})
        expected = old.copy()
        expected[offset : offset + N] = x * numbers(26)
        np.testing.assert_array_equal(kaas.get("longer", dtype="u4"), expected)


def test_a_range_of_a_key_that_is_missing_is_not_found(kaas: Client, dot: str) -> None:
    kaas.put("m", numbers(29))
    buffer = inout("missing", 4 * N, offset=4)
    with pytest.raises(KeyNotFoundError, match="missing"):
        kaas.submit(Request([product(dot, inp("m", 4 * N), buffer, inout("missing"))]), inputs={"missing": numbers(30)})
    with pytest.raises(KeyNotFoundError):
        kaas.stat("missing")


def test_an_input_that_is_missing_says_what_can_be_given(kaas: Client, dot: str) -> None:
    request = Request([product(dot, inp("left", 4 * N, key="nowhere"), inp("right", 4 * N, key="nowhere"), out("p", 4 * N))])
    with pytest.raises(KeyNotFoundError, match=r"'nowhere'.*buffer 'left' and 'right'.*send the buffer's bytes with the call"):
        kaas.submit(request)
    a = numbers(31)
    kaas.submit(request, inputs={"left": a, "right": a})
    np.testing.assert_array_equal(kaas.get("p", dtype="u4"), a * a)
