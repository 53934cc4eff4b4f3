"""Programs in the style of the original's: its imports are changed, and nothing else."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import ray

import kaas_client.ray.original as kaas
from kaas_client.errors import InvalidRequestError, KaasError, LibraryNotFoundError
from kaas_client.ray.original import profiling
from tests.ray.support import DOT, KERNELS, N

pytestmark = pytest.mark.usefixtures("cluster")


def dot_request(a_key: bytes, b_key: bytes, offset: int = 0, **of_output: Any) -> kaas.kaasReq:
    """The original's own first example: a product of vectors in one kernel, its sum in another."""
    a = kaas.bufferSpec("inpA", 4 * N, key=a_key)
    b = kaas.bufferSpec("inpB", 4 * N, offset=offset, key=b_key)
    product = kaas.bufferSpec("prodOut", 4 * N, ephemeral=True)
    output = kaas.bufferSpec("output", 8, **of_output)
    literals = [kaas.literalSpec("Q", N)]
    arguments = [(a, "i"), (b, "i"), (product, "t")]
    first = kaas.kernelSpec(DOT, "prodKern", (1, 1), (N, 1, 1), literals=literals, arguments=arguments)
    second = kaas.kernelSpec(DOT, "sumKern", (1, 1), (N // 2, 1, 1), arguments=[(product, "i"), (output, "o")])
    return kaas.kaasReq([first, second])


def vectors(seed: int) -> tuple[Any, Any, int]:
    a, b = np.random.default_rng(seed).integers(0, 2**32, (2, N), dtype=np.uint32)
    return a, b, int(np.sum(a * b, dtype=np.uint32))


@pytest.mark.parametrize("of_output", [{"key": "c"}, {"key": "c", "ephemeral": True}, {"ephemeral": True}])
def test_a_task_returns_references_to_outputs_that_are_int8(of_output: dict[str, Any]) -> None:
    a, b, expected = vectors(1)
    combined = ray.put(np.concatenate((a, b)))
    request = dot_request(kaas.ray.putObj(combined), kaas.ray.putObj(combined), offset=4 * N, **of_output)
    result = ray.get(kaas.ray.invokerTask.remote((ray.put(request), {})))
    assert isinstance(result, tuple) and len(result) == 1
    array = ray.get(result[0])
    assert (array.dtype, array.shape) == (np.int8, (8,))
    array.dtype = np.uint32
    assert array.tolist() == [expected, 0]


def test_an_actor_is_called_again_and_again_with_other_keys() -> None:
    a, b, expected = vectors(2)
    c, d, other = vectors(3)
    reference = ray.put(dot_request(kaas.ray.putObj(a), kaas.ray.putObj(ray.put(b))))
    actor = kaas.ray.invokerActor.remote()
    ray.get(actor.ensureReady.remote())
    keys = {"inpA": kaas.ray.putObj(c), "inpB": kaas.ray.putObj(d)}
    calls = [actor.invoke.remote((reference, given), clientID="me") for given in ({}, keys, {})]
    sums = [ray.get(ray.get(call)[0]).view(np.uint32)[0] for call in calls]
    assert sums == [expected, other, expected]


def test_an_output_is_an_input_of_the_next_request() -> None:
    """Of a chain that a process holds no value of."""
    a = vectors(4)[0]
    side = 16
    size = 4 * side * side
    x = a[: side * side].astype(np.float32).reshape(side, side) / 2**32

    def layer(name: str, source: str, **of_source: Any) -> kaas.kernelSpec:
        buffers = [
            (kaas.bufferSpec(source, size, **of_source), "i"),
            (kaas.bufferSpec(f"{name}_B", size, const=True), "i"),
            (kaas.bufferSpec(f"{name}_C", size, ephemeral=True), "o" if name == "last" else "t"),
        ]
        literals = [kaas.literalSpec("i", side) for _ in range(3)]
        return kaas.kernelSpec(KERNELS / "matmul.ptx", "matmulKern", (1, 1, 1), (16, 16, 1), 0, literals, buffers)

    request = kaas.kaasReq(
        [layer("first", "A"), layer("second", "first_C", ephemeral=True), layer("last", "second_C", ephemeral=True)]
    )
    scales = [np.diag(np.full(side, scale, np.float32)) for scale in (1, 2, 3)]
    request.reKey({f"{name}_B": kaas.ray.putObj(scale) for name, scale in zip(("first", "second", "last"), scales, strict=True)})
    reference = ray.put(request)
    (once,) = kaas.ray.invoke((reference, {"A": kaas.ray.putObj(x)}))
    (twice,) = kaas.ray.invoke((reference, {"A": kaas.ray.putObj(once)}))
    result = ray.get(twice).view(np.float32).reshape(side, side)
    assert np.allclose(result, 36 * x, rtol=1e-5)


def test_jacobi_iterates_and_returns_two_outputs() -> None:
    n, pairs = 32, 20
    rng = np.random.default_rng(40)
    a = rng.random((n, n), dtype=np.float32)
    np.fill_diagonal(a, 2 * np.sum(a, axis=1))
    b = rng.random((n, 1), dtype=np.float64)
    buffers = [kaas.bufferSpec("A", a.nbytes), kaas.bufferSpec("b", b.nbytes)]
    x, x_new = kaas.bufferSpec("x", 8 * n, ephemeral=True), kaas.bufferSpec("xnew", 8 * n)
    residual = kaas.bufferSpec("d", 16)

    def step(phase: int, old: kaas.bufferSpec, new: kaas.bufferSpec, use: str) -> kaas.kernelSpec:
        arguments = [(buffers[0], "i"), (buffers[1], "i"), (old, "io"), (new, use), (residual, "o" if phase else "io")]
        literals = [kaas.literalSpec("i", n), kaas.literalSpec("i", phase)]
        return kaas.kernelSpec(KERNELS / "jacobi.ptx", "jacobiKern", (n // 4, 1, 1), (128, 1, 1), 8 * n, literals, arguments)

    request = kaas.kaasReq([step(0, x, x_new, "o"), step(1, x_new, x, "t")], nIter=pairs)
    request.bufferMap["d"] = request.bufferMap["d"]._replace(ephemeral=True)
    keys = {"A": kaas.ray.putObj(a), "b": kaas.ray.putObj(memoryview(b))}
    profs = profiling.profCollection()
    references, profs = ray.get(kaas.ray.invokerTask.remote((ray.put(request), keys), profs=profs))
    solution, left = (array.view(np.float64) for array in ray.get(list(references)))
    assert np.allclose(solution, np.linalg.solve(a.astype(np.float64), b).ravel(), rtol=1e-5)
    assert left[1] < 1e-3
    assert profs.report(metrics=["total"])["n_invoke"] == {"total": 2 * pairs}


def test_a_name_may_be_a_key() -> None:
    a = vectors(5)[0]
    key = kaas.ray.putObj(a)
    arguments = [(kaas.bufferSpec(key, a.nbytes), "i"), (kaas.bufferSpec("out", 4), "o")]
    request = kaas.kaasReq([kaas.kernelSpec(DOT, "sumKern", (1, 1), (N // 2, 1, 1), arguments=arguments)])
    (output,) = ray.get(kaas.ray.invokerTask.remote((ray.put(request), {})))
    assert int.from_bytes(ray.get(output), sys.byteorder) == np.sum(a, dtype=np.uint32)


def test_what_fails_is_raised_where_the_outer_reference_is_read() -> None:
    a = vectors(6)[0]
    request = dot_request(kaas.ray.putObj(a), kaas.ray.putObj(a), offset=8)
    with pytest.raises(KaasError, match="the range from 8 to"):
        ray.get(kaas.ray.invokerTask.remote((ray.put(request), {})))
    with pytest.raises(kaas.KaasError, match="not a key that putObj returned"):
        ray.get(kaas.ray.invokerTask.remote((ray.put(dot_request(b"a", b"b")), {})))
    nowhere = kaas.kaasReq([kaas.kernelSpec("/no/such.ptx", "k", (1,), (1,), arguments=[(kaas.bufferSpec("x", 4), "o")])])
    with pytest.raises(LibraryNotFoundError):
        kaas.ray.invoke((nowhere, {}))
    too_large = kaas.kaasReq([kaas.kernelSpec(DOT, "sumKern", (1,), (2048,), arguments=[(kaas.bufferSpec("x", 4), "o")])])
    with pytest.raises(InvalidRequestError):
        kaas.ray.invoke((too_large, {}))


@ray.remote(num_cpus=0)
class OwnGpu:
    """An actor that was given a GPU, as far as the original's calls can tell; what they find is an emulated device."""

    def __init__(self) -> None:
        kaas.ray._was_given_gpu = lambda: True
        kaas.ray.init()

    def run(self, *requests: Any) -> list[Any]:
        return [kaas.ray.invoke(request, profs=None, clientID="me") for request in requests]

    def fail(self, request: Any) -> None:
        kaas.ray.invoke(request)


def test_a_process_that_was_given_a_gpu_runs_requests_itself() -> None:
    a, b, expected = vectors(7)
    c, d, other = vectors(8)
    combined = kaas.ray.putObj(np.concatenate((a, b)))
    request = dot_request(combined, combined, offset=4 * N, ephemeral=True)
    request.bufferMap["inpA"] = request.bufferMap["inpA"]._replace(const=True)
    reference = ray.put(request)
    keys = {"inpA": kaas.ray.putObj(c), "inpB": kaas.ray.putObj(np.concatenate((a, d)))}
    actor = OwnGpu.remote()
    outputs = ray.get(actor.run.remote((reference, {}), (reference, keys), (reference, {})))
    assert [ray.get(output).view(np.uint32)[0] for (output,) in outputs] == [expected, other, expected]
    with pytest.raises(LibraryNotFoundError, match="cannot be read"):
        nowhere = [kaas.kernelSpec("/no/such.ptx", "k", (1,), (1,), arguments=[(kaas.bufferSpec("x", 4), "o")])]
        ray.get(actor.fail.remote((kaas.kaasReq(nowhere), {})))
    with pytest.raises(KaasError, match="the range from"):
        ray.get(actor.fail.remote((reference, {"inpA": kaas.ray.putObj(c[:4])})))
