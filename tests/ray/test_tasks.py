"""Requests as tasks of a real cluster: what they return, and what they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import ray

import kaas_client.ray as kaas_ray
from kaas_client import Kernel, Request, inout, inp, out, packed, u64
from kaas_client.errors import FunctionNotFoundError, InvalidRequestError, LibraryNotFoundError
from tests.ray.support import DOT, N, Words, dot_request, product_and_dot_request, product_request, vectors

pytestmark = pytest.mark.usefixtures("cluster")

PACKED = Path(__file__).parents[1] / "conformance/data/packed.ptx"


def dot_of(a: Words, b: Words) -> int:
    return int(np.sum(a * b, dtype=np.uint32))


def test_an_array_and_a_reference_are_the_same_to_it() -> None:
    a, b = vectors(1)
    dot = kaas_ray.remote(dot_request())
    for first in (a, ray.put(a), a.tobytes(), memoryview(a)):
        assert ray.get(dot.remote(a=first, b=b)) == dot_of(a, b)


@pytest.mark.parametrize("n", [1024, 1 << 18])
def test_a_pipeline_from_python_to_ours_to_ours_to_python(n: int) -> None:
    a, b = vectors(2, n)

    @ray.remote
    def negated(x: Words) -> Words:
        return -x

    product = kaas_ray.remote(product_request(n))
    reference = negated.remote(product.remote(a=product.remote(a=negated.remote(a), b=b), b=b))
    assert np.array_equal(ray.get(reference), a * b * b)


def test_what_starts_as_zeros_may_be_returned_and_given() -> None:
    """As an iterative solver's first guess."""
    a, b = vectors(6)
    x = inout("x", 4 * N, ephemeral=True, dtype="u4", shape=N)
    step = kaas_ray.remote(Request([Kernel(DOT, "prodKern", grid=1, block=N, args=[u64(N), x, inp("b", 4 * N), x])]))
    assert not ray.get(step.remote(b=b)).any()
    assert np.array_equal(ray.get(step.remote(b=b, x=a)), a * b)
    assert not ray.get(step.remote(b=ray.put(b))).any()


def test_a_registered_function_is_found_by_its_name() -> None:
    kaas_ray.register("ours/dot", dot_request())
    a, b = vectors(3)
    dot = kaas_ray.remote("ours/dot")
    assert dot.name == "ours/dot"
    assert ray.get(dot.remote(a=a, b=b)) == dot_of(a, b)
    with pytest.raises(FunctionNotFoundError, match="'ours/missing'"):
        kaas_ray.remote("ours/missing")


def test_a_task_of_python_calls_ours() -> None:
    a, b = vectors(4)
    dot = kaas_ray.remote(dot_request())

    @ray.remote
    def caller() -> int:
        return int(ray.get(dot.remote(a=a, b=b)))

    assert ray.get(caller.remote()) == dot_of(a, b)


def test_buffers_in_structs_are_given_and_returned_as_others() -> None:
    view = np.dtype([("data", "u8"), ("rows", "i4"), ("columns", "i4"), ("row_stride", "i8")], align=True)
    shape = np.array((0, 4, 8, 8), view)[()]
    arguments = [
        packed(shape, {"data": inp("x", 128)}),
        packed(bytes(3)),
        packed(np.float32([2, 1, 0, 0]).tobytes()),
        packed(shape, {"data": out("y", dtype="f4", shape=(4, 8))}),
    ]
    affine = kaas_ray.remote(Request([Kernel(str(PACKED), "affineKern", grid=(1, 4), block=8, args=arguments)]))
    x = np.arange(32, dtype=np.float32).reshape(4, 8)
    np.testing.assert_array_equal(ray.get(affine.remote(x=x)), 2 * x + 1)
    np.testing.assert_array_equal(ray.get(affine.remote(x=affine.remote(x=x))), 4 * x + 3)


def test_several_outputs_are_a_tuple_in_the_order_of_first_writes_or_as_asked_for() -> None:
    a, b = vectors(5)
    both = kaas_ray.remote(product_and_dot_request())
    assert both.outputs == ("p", "c")
    product, dot = ray.get(list(both.remote(a=a, b=b)))
    assert np.array_equal(product, a * b)
    assert dot == dot_of(a, b)
    dot, product = ray.get(list(both.options(returns=("c", "p")).remote(a=a, b=b)))
    assert np.array_equal(product, a * b)
    assert dot == dot_of(a, b)
    assert ray.get(both.options(returns=["c"]).remote(a=a, b=b)) == dot_of(a, b)


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        ([], "at least one"),
        (["a"], r"returns\[0\]: no kernel writes a buffer 'a'"),
        (["p", "none"], r"returns\[1\]: no kernel writes"),
        (["p", "p"], r"returns\[1\]: .*twice"),
    ],
)
def test_what_cannot_be_returned_is_refused(returns: list[str], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        kaas_ray.remote(product_and_dot_request()).options(returns=returns)


def test_what_is_wrong_with_a_call_is_said_at_once() -> None:
    a, b = vectors(6)
    dot = kaas_ray.remote(dot_request())
    with pytest.raises(InvalidRequestError, match=r'inputs\["b"\]: is missing'):
        dot.remote(a=a)
    with pytest.raises(InvalidRequestError, match=r'inputs\["z"\]: no kernel reads'):
        dot.remote(a=a, b=b, z=b)
    with pytest.raises(InvalidRequestError, match=r'inputs\["a"\]: has 8 bytes, but the buffer has 4096'):
        dot.remote(a=a[:2], b=b)
    with pytest.raises(LibraryNotFoundError, match="cannot be read"):
        kaas_ray.remote(Request([Kernel("/no/such.ptx", "k", args=[out("x", 4)])]))
    with pytest.raises(LibraryNotFoundError, match="upload it"):
        kaas_ray.remote(Request([Kernel(f"sha256:{'0' * 64}", "k", args=[out("x", 4)])]))


def test_a_library_is_known_by_its_content() -> None:
    library = kaas_ray.upload(DOT)
    assert library == kaas_ray.upload(Path(DOT).read_bytes())
    assert kaas_ray.remote(dot_request()).request.kernels[0].library == library


FORMS: list[tuple[Any, tuple[int, ...], str]] = [
    ("f4", (32, 32), "C"),
    ("<f8", (16, 8, 4), "F"),
    (">i2", (2048,), "C"),
    ("M8[ns]", (2, 256), "C"),
    (ml_dtypes.bfloat16, (1024, 2), "F"),
    (ml_dtypes.float8_e5m2, (4096,), "C"),
    ([("key", "<i4"), ("value", "<f4")], (512,), "C"),
    ("V4096", (), "C"),
]


@pytest.mark.parametrize(("dtype", "shape", "order"), FORMS)
def test_outputs_have_the_dtype_shape_and_order_of_their_buffers(dtype: Any, shape: tuple[int, ...], order: Any) -> None:
    a, _ = vectors(7)
    same = kaas_ray.remote(product_request(N, dtype=dtype, shape=shape, fortran_order=order == "F"))
    reference = same.remote(a=a, b=np.ones_like(a))
    expected = np.frombuffer(a.tobytes(), dtype).reshape(shape, order=order)
    result = ray.get(reference)
    assert (result.dtype, result.shape, result.flags.f_contiguous) == (expected.dtype, shape, expected.flags.f_contiguous)
    assert result.tobytes("A") == a.tobytes()
    words = kaas_ray.remote(product_request(N))
    if order == "C":
        assert np.array_equal(ray.get(words.remote(a=reference, b=np.ones_like(a))), a)


def test_an_array_is_given_in_the_order_of_its_buffer() -> None:
    a = vectors(8)[0].reshape(32, 32)
    ones = np.ones_like(a)
    size = a.nbytes
    in_rows = kaas_ray.remote(product_request(N, shape=(32, 32)))
    assert np.array_equal(ray.get(in_rows.remote(a=a.T, b=ones)), a.T)
    columns = inp("a", dtype="u4", shape=(32, 32), fortran_order=True)
    product = Kernel(DOT, "prodKern", grid=1, block=N, args=[u64(N), columns, inp("b", size), out("p", dtype="u4", shape=N)])
    in_columns = kaas_ray.remote(Request([product]))
    for given in (a, a.T.copy().T, ray.put(a)):
        assert np.array_equal(ray.get(in_columns.remote(a=given, b=ones)), a.ravel("F"))


def test_a_form_that_does_not_fit_is_refused_when_the_task_is_made() -> None:
    form = product_request(N).spec
    for changed, message in (({"dtype": "nonsense"}, "no dtype that is known"), ({"shape": (5,)}, "20 bytes, not 4096")):
        buffers = tuple(replace(spec, **changed) if spec.name == "p" else spec for spec in form.buffers)
        with pytest.raises(InvalidRequestError, match=message):
            kaas_ray.remote(Request.from_spec(replace(form, buffers=buffers)))
