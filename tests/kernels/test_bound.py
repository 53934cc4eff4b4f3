"""Launches as functions of arrays, through a daemon on the emulated device."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.local_daemon import local_daemon
from kaas_client import AsyncClient, Client, Kernel, Key, Request, f32, inout, inp, out, packed, texture, u64
from kaas_client.kernels import Compiled, CompileError, cuda, numba, ptx, triton, warp
from kaas_core.errors import InvalidRequestError
from tests.kernels import sources

N = 1000
X, Y = np.arange(N, dtype=np.float32), np.full(N, 3, np.float32)
EXPECTED = 2 * X + Y
DATA = Path(__file__).parents[1] / "conformance/data"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with local_daemon("--device", "emulator", "--log-level", "WARNING") as address:
        yield address


@pytest.fixture
def kaas(address: str) -> Iterator[Client]:
    with Client(address, timeout=100) as client:
        yield client


def saxpy(kind: str) -> Any:
    """Return a launch of the same computation, by one compiler."""
    if kind == "cuda":
        return cuda(source=sources.CUDA)["saxpy<float>"][8, 128](f32(2), inp("x"), inout("y"), u64(N))
    if kind == "triton":
        return triton(sources.triton_saxpy, sources.TRITON_TYPES, {"BLOCK": 128})[8](2.0, inp("x"), inout("y"), N)
    if kind == "numba":
        return numba(sources.numba_saxpy, sources.NUMBA_TYPES)[8, 128](2.0, inp("x"), inout("y"))
    return warp(sources.warp_saxpy)[N](2.0, inp("x"), inout("y"))


@pytest.mark.parametrize("kind", ["cuda", "triton", "numba", "warp"])
def test_a_kernel_of_each_compiler(kind: str, kaas: Client) -> None:
    f = kaas.bind(saxpy(kind))
    for _ in range(2):
        results = f(x=X, y=Y)
        assert list(results) == ["y"] and len(results) == 1
        assert results["y"].dtype == np.float32 and np.array_equal(results["y"], EXPECTED)
    assert results.result.device == "emulator"


def test_kernels_of_all_compilers_are_one_request(kaas: Client) -> None:
    f = kaas.bind([saxpy(kind) for kind in ("cuda", "triton", "numba", "warp")], name="four")
    assert np.array_equal(f(x=X, y=Y)["y"], 8 * X + Y)
    assert [kernel.name for kernel in kaas.function("four").request.spec.kernels][1] == "triton_saxpy"


def test_other_shapes_are_other_functions(kaas: Client) -> None:
    f = kaas.bind(numba(sources.numba_saxpy, sources.NUMBA_TYPES)[8, 128](2.0, inp("x"), inout("y")))
    for n in (10, 1000, 10):
        assert np.array_equal(f(x=X[:n], y=Y[:n])["y"], EXPECTED[:n])


def test_a_name_is_that_of_the_first_shapes(kaas: Client) -> None:
    f = kaas.bind(numba(sources.numba_saxpy, sources.NUMBA_TYPES)[8, 128](2.0, inp("x"), inout("y")), name="first")
    for n in (10, 1000, 10):
        assert np.array_equal(f(x=X[:n], y=Y[:n])["y"], EXPECTED[:n])
    registered = list(kaas.functions("first"))
    assert [len(function.name) for function in registered] == [5, 5 + 1 + 32]
    assert registered[0].request.spec.buffers[0].size_bytes == 40


def test_what_was_deleted_is_made_again(kaas: Client) -> None:
    f = kaas.bind(saxpy("cuda"), name="deleted")
    f(x=X, y=Y)
    library = kaas.function("deleted").request.spec.kernels[0].library
    kaas.delete_function("deleted")
    kaas.delete_library(library)
    assert np.array_equal(f(x=X, y=Y)["y"], EXPECTED)


def test_a_deleted_library_is_uploaded_again(kaas: Client) -> None:
    f = kaas.bind(saxpy("cuda"), name="without-library")
    f(x=X, y=Y)
    kaas.delete_library(kaas.function("without-library").request.spec.kernels[0].library)
    assert np.array_equal(f(x=X, y=Y)["y"], EXPECTED)


def test_results_go_to_the_caller_alone(kaas: Client) -> None:
    kaas.put("y", b"another's")
    f = kaas.bind(saxpy("cuda"))
    assert np.array_equal(f(x=X, y=Y)["y"], EXPECTED)
    fill = warp(sources.warp_fill)[5, 7](out("m", dtype="f4", shape=(5, 7)), (1.0, 2.0, 3.0), 10)
    result = kaas.bind(fill)()
    assert not result.result.versions and "m" not in [entry.key for entry in kaas.list("m")]
    assert kaas.get("y") == b"another's"


def test_what_has_a_key_is_stored(kaas: Client) -> None:
    fill = warp(sources.warp_fill)[5, 7]
    f = kaas.bind(fill(out("m", dtype="f4", shape=(5, 7)), (1.0, 2.0, 3.0), 10))
    stored = f(m=Key("bound/called"))
    g = kaas.bind(fill(out("m", dtype="f4", shape=(5, 7), key="bound/declared"), (1.0, 2.0, 3.0), 10))
    assert kaas.get("bound/called") == stored["m"].tobytes() == g()["m"].tobytes() == kaas.get("bound/declared")
    kaas.put("bound/sum", Y)
    h = kaas.bind(cuda(source=sources.CUDA)["plain"][8, 128](f32(2), inp("x"), inout("bound/sum", dtype="f4", shape=N), u64(N)))
    for step in (1, 2):  # Read from the store by its name, and written back.
        assert np.array_equal(h(x=X)["bound/sum"], step * 2 * X + Y)


def test_what_is_no_launch_is_refused(kaas: Client) -> None:
    compiled = cuda(source=sources.CUDA)["plain"]
    for wrong in (compiled, [compiled], [compiled[8, 128]], ["plain"]):
        with pytest.raises(TypeError):
            kaas.bind(wrong)  # type: ignore[arg-type]
    for grid, block, field in (("a", 1, "grid"), (1.5, 1, "grid"), ((1, 1, 1, 1), 1, "grid"), (1, (), "block")):
        launch: Any = compiled[grid, block](f32(2), inp("x"), inout("y"), u64(N))
        with pytest.raises(InvalidRequestError, match=rf"kernels\[0\]\.{field}: a size "):
            kaas.bind(launch)(x=X, y=Y)


def test_textures(kaas: Client) -> None:
    source = """
    extern "C" __global__ void shift(cudaTextureObject_t t, float* y) { y[threadIdx.x] = tex1D<float>(t, threadIdx.x + 1.5f); }
    """
    seen = texture(inp("x"), dtype="float32", extent=8)
    f = kaas.bind(cuda(source=source)["shift"][1, 8](seen, out("y", dtype="f4", shape=8)))
    assert np.array_equal(f(x=X[:8])["y"], [1, 2, 3, 4, 5, 6, 7, 7])


def test_two_dimensions_in_both_orders(kaas: Client) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    transpose = numba(sources.numba_transpose, "void(float32[:,::1], float32[:,:])")
    f = kaas.bind(transpose[1, (4, 4)](inp("x"), inout("y")))
    for order in ("C", "F"):
        y = f(x=x, y=np.zeros((4, 3), np.float32, order=order))["y"]
        assert y.shape == (4, 3) and np.array_equal(y, x.T)
        assert y.flags.f_contiguous == (order == "F")


@pytest.mark.parametrize("declared", ["C", "F"])
def test_a_declared_order_is_that_of_what_is_sent(kaas: Client, declared: str) -> None:
    """Also for kernels that get strides."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    form: dict[str, Any] = {"dtype": "f4", "shape": (4, 3), "fortran_order": declared == "F"}
    transpose = numba(sources.numba_transpose, "void(float32[:,::1], float32[:,:])")
    turn = kaas.bind(transpose[1, (4, 4)](inp("x"), inout("y", **form)))
    scale = kaas.bind(cuda(source=sources.CUDA)["plain"][1, 12](f32(2), inp("x", **form), inout("y", **form), u64(12)))
    for order in ("C", "F"):
        y = np.array(np.arange(12).reshape(4, 3), np.float32, order=order)
        assert np.array_equal(turn(x=x, y=y)["y"], x.T)
        assert np.array_equal(scale(x=y, y=np.ones((4, 3), "f4"))["y"], 2 * y + 1)


def test_vectors_and_arrays_of_warp(kaas: Client) -> None:
    f = kaas.bind(warp(sources.warp_fill)[5, 7](out("m", dtype="f4", shape=(5, 7)), (1.0, 2.0, 3.0), 10))
    assert np.array_equal(f()["m"], np.repeat(np.float32([11, 12, 13, 11, 12])[:, None], 7, axis=1))


def test_files_of_ptx_and_structs(kaas: Client) -> None:
    prod = ptx(Path(__file__).parents[2] / "examples/kernels/dot.ptx")["prodKern"]
    f = kaas.bind(prod[8, 128](u64(N), inp("a"), inp("b"), out("c", dtype=np.uint32, shape=N)))
    a = np.arange(N, dtype=np.uint32)
    assert np.array_equal(f(a=a, b=a)["c"], a * a)
    assert isinstance(packed(b"12345678", {0: inp("x", 8)}), object)


def test_what_lies_in_the_store_has_its_declared_form(kaas: Client) -> None:
    kaas.put("stored", X)
    f = kaas.bind(
        cuda(source=sources.CUDA)["plain"][8, 128](f32(2), inp("x", dtype="f4", shape=N), inout("y"), u64(N)), "from-store"
    )
    assert np.array_equal(f(x=Key("stored"), y=Y)["y"], EXPECTED)
    with pytest.raises(InvalidRequestError, match=r"buffers\['x'\]: an array has float64 of shape \[1000\], and it is declared"):
        f(x=X.astype(float), y=Y)


def test_nothing_tells_what_a_buffer_is(kaas: Client) -> None:
    f = kaas.bind(cuda(source=sources.CUDA)["plain"][8, 128](f32(2), inp("x"), inout("y"), u64(N)))
    with pytest.raises(InvalidRequestError, match=r"kernels\[0\]\.arguments\[1\]: buffer 'x' has no size"):
        f(y=Y)


def test_arrays_that_are_not_contiguous_are_copied_with_a_word(kaas: Client) -> None:
    f = kaas.bind(saxpy("cuda"))
    with pytest.warns(UserWarning, match="the array for buffer 'x' is not contiguous, and is copied"):
        assert np.array_equal(f(x=np.repeat(X, 2)[::2], y=Y)["y"], EXPECTED)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (X.astype(">f4"), "the array for buffer 'x' is of >f4, which is not in the order of bytes that kernels read; send array"),
        (np.zeros(N, [("a", ">f4")]), "the array for buffer 'x' is of .* not in the order of bytes"),
        (np.ma.masked_array(X, X > 3), "the array for buffer 'x' is masked, and would lose its mask"),
        (np.array([None] * N), "the items of the array for buffer 'x' are not plain bytes: values of object"),
        (np.zeros(N, [("a", object)]), "the items of the array for buffer 'x' are not plain bytes"),
    ],
)
def test_arrays_that_a_kernel_would_misread_are_refused(kaas: Client, x: Any, words: str) -> None:
    f = kaas.bind(saxpy("cuda"))
    with pytest.raises(TypeError, match=words):
        f(x=x, y=Y)
    other = x.astype(x.dtype.newbyteorder("=")) if x.dtype == ">f4" else X
    assert np.array_equal(f(x=other, y=Y)["y"], EXPECTED)
    kaas.put("kept", np.array([1, 2], ">f4"))  # the store may have them
    assert kaas.get("kept").array().tolist() == [1, 2]


def test_a_buffer_may_have_the_name_of_an_old_option(kaas: Client) -> None:
    f = kaas.bind(cuda(source=sources.CUDA)["saxpy<float>"][8, 128](f32(2), inp("inputs"), inout("timeout"), u64(N)))
    assert np.array_equal(f(inputs=X, timeout=Y)["timeout"], EXPECTED)


def test_lists_and_foreign_arrays(kaas: Client) -> None:
    class Foreign:
        """An array of another package, on the host."""

        def __dlpack__(self, **options: Any) -> Any:
            return X.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    f = kaas.bind(saxpy("cuda"))
    assert np.array_equal(f(x=Foreign(), y=Y)["y"], EXPECTED)
    with pytest.raises(TypeError, match="buffer 'x' takes an array or bytes, not"):
        f(x=[1, 2, 3], y=Y)
    with pytest.raises(TypeError, match="has no buffer 'z'; it has x, y"):
        f(x=X, y=Y, z=Y)


def test_options_and_timeouts_are_those_of_a_call(kaas: Client) -> None:
    f = kaas.bind(saxpy("cuda")).options(returns=["x", "y"], trace=True)
    results = f(x=X, y=Y)
    assert sorted(results) == ["x", "y"] and results.result.trace is not None
    assert np.array_equal(results["x"], X)


def test_a_source_that_does_not_compile(kaas: Client) -> None:
    with pytest.raises(CompileError, match="error"):
        kaas.bind(cuda(source="nonsense")["k"][1, 1]())()


def test_a_kernel_that_there_is_not(kaas: Client) -> None:
    with pytest.raises(CompileError, match=r"source.cu: there is no kernel 'absent'; it has .*plain"):
        kaas.bind(cuda(source=sources.CUDA)["absent"][1, 1]())()


def test_for_asyncio(address: str) -> None:
    async def body() -> Any:
        async with AsyncClient(address, timeout=100) as kaas:
            f = kaas.bind(saxpy("cuda"))
            return await asyncio.gather(*(f(x=X, y=Y) for _ in range(5)))

    assert all(np.array_equal(results["y"], EXPECTED) for results in asyncio.run(body()))


@pytest.fixture(scope="module")
def older() -> Iterator[str]:
    with local_daemon("--device", "emulator", "--emulator-ptx-version", "8.0", "--log-level", "WARNING") as address:
        yield address


def test_compilers_are_asked_for_what_the_device_takes(older: str) -> None:
    with Client(older, timeout=100) as kaas:
        assert kaas.devices()[0].max_ptx_version == 80
        assert np.array_equal(kaas.bind(saxpy("triton"))(x=X, y=Y)["y"], EXPECTED)


def test_what_was_compiled_for_a_target_stays_that(kaas: Client) -> None:
    compiled: Compiled = cuda(source=sources.CUDA)["plain"].compile(target="sm_75")
    f = kaas.bind(compiled[8, 128](f32(2), inp("x"), inout("y"), u64(N)))
    assert np.array_equal(f(x=X, y=Y)["y"], EXPECTED)
    library = next(iter(f._libraries.values()))
    assert kaas.inspect(library).kernels and compiled.target == "sm_75"


def test_results_have_the_form_that_their_request_gives_them(kaas: Client) -> None:
    library = kaas.upload(Path(__file__).parents[2] / "examples/kernels/dot.ptx")
    a = np.arange(12, dtype=np.uint32)
    buffers = [inp("a", 48), inp("b", 48), out("c", dtype="u4", shape=(3, 4), fortran_order=True), out("d", 4)]
    request = Request(
        [
            Kernel(library, "prodKern", 1, 12, [u64(12), *buffers[:3]]),
            Kernel(library, "prodKern", 1, 1, [u64(1), inp("a"), inp("b"), buffers[3]]),
        ]
    )
    function = kaas.register("formed", request)
    for result in (function(a=a, b=a), kaas.submit(request, inputs={"a": a, "b": a}, returns=["c", "d"])):
        assert np.array_equal(result.array("c"), (a * a).reshape(3, 4, order="F"))
        assert np.array_equal(result.array("c", "u4"), a * a)
        with pytest.raises(TypeError, match="nothing says what buffer 'd' is"):
            result.array("d")
        with pytest.raises(KeyError):
            result.array("e")
