"""Programs of the original that run in one process, without a cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kaas_client.ray.original as kaas
from kaas_client.errors import KernelFaultError, UnavailableError
from kaas_client.ray.original import profiling
from kaas_client.ray.original.device import OwnDevice
from kaas_client.ray.original.lowering import lower
from kaas_core.json_form import request_from_json
from tests.ray.support import DOT, FAULTS, KERNELS, N


def chain(depth: int, side: int = 16) -> kaas.kaasReq:
    """Return a chain of matrix products with constants, which lie in one value, one after the other."""
    size = 4 * side * side
    kernels, source = [], kaas.bufferSpec("A", size)
    for index in range(depth):
        last = index == depth - 1
        product = kaas.bufferSpec(f"layer{index}_C", size, ephemeral=True)
        constant = kaas.bufferSpec(f"layer{index}_B", size, offset=index * size, key="constants", const=True)
        buffers = [(source, "i"), (constant, "i"), (product, "o" if last else "t")]
        literals = [kaas.literalSpec("i", side)] * 3
        kernels.append(kaas.kernelSpec(KERNELS / "matmul.ptx", "matmulKern", (1, 1, 1), (16, 16, 1), 0, literals, buffers))
        source = product
    return kaas.kaasReq(kernels)


@pytest.mark.parametrize("form", [{"serialize": False}, {"serialize": True}, {"serialize": False, "copyObjs": True}])
def test_a_chain_reads_and_writes_a_store(form: dict[str, Any]) -> None:
    kaas.local.init()
    kv = kaas.local.LocalKV(**form)
    kv.put("constants", np.concatenate([np.diag(np.full(16, scale, np.float32)).ravel() for scale in (1, 2, 3)]))
    request = chain(3)
    profs = profiling.profCollection(detail=True)
    for seed in range(3):
        x = np.random.default_rng(seed).random((16, 16), dtype=np.float32)
        kv.put(seed, x)
        kaas.local.invoke((request, {"A": seed, "layer2_C": -1 - seed}), kv, profs=profs)
        result = kv.get(-1 - seed)
        assert (result.dtype, result.shape) == (np.int8, (1024,))
        assert np.array_equal(result.view(np.float32).reshape(16, 16), 6 * x)
    report = profs.report(includeEvents=True)
    assert report["n_invoke"]["events"] == [3, 3, 3]
    assert report["t_e2e"]["min"] >= report["t_invoke"]["min"] > 0
    kv.delete([0, -1, 5])
    with pytest.raises(kaas.local.KVKeyError, match="-1"):
        kv.get([1, -1])


def test_what_a_kernel_adds_to_is_read_but_not_returned() -> None:
    counts = kaas.bufferSpec("counts", 4 * N, offset=16)
    other = kaas.bufferSpec("copy", 4 * N)
    literals = [kaas.literalSpec("Q", N)]
    square = kaas.kernelSpec(
        DOT, "prodKern", (1,), (N,), literals=literals, arguments=[(counts, "io"), (counts, "io"), (counts, "io")]
    )
    copied = kaas.kernelSpec(
        DOT, "prodKern", (1,), (N,), literals=literals, arguments=[(counts, "i"), (counts, "i"), (other, "o")]
    )
    kv = kaas.local.LocalKV()
    values = np.arange(N + 8, dtype=np.uint32)
    kv.put("counts", values)
    kaas.local.invoke((kaas.kaasReq([square, copied], nIter=2), {}), kv)
    assert np.array_equal(kv.get("copy").view(np.uint32), values[4 : N + 4] ** 8)
    assert np.array_equal(kv.get("counts"), values)
    kaas.local.invoke((kaas.kaasReq([square]), {}), kv)
    assert sorted(kv.store) == ["copy", "counts"]


def test_outputs_come_in_the_order_of_their_first_writes() -> None:
    a, b, c, d = (kaas.bufferSpec(name, 4 * N, ephemeral=True) for name in "abcd")
    literals = [kaas.literalSpec("Q", N)]

    def product(*uses: tuple[kaas.bufferSpec, str]) -> kaas.kernelSpec:
        return kaas.kernelSpec(DOT, "prodKern", (1, 1), (N, 1, 1), literals=literals, arguments=list(uses))

    request = kaas.kaasReq(
        [product((a, "i"), (b, "io"), (d, "t")), product((d, "i"), (d, "i"), (c, "o")), product((c, "i"), (b, "i"), (a, "o"))]
    )
    assert lower(request).outputs == ("c", "a")
    assert lower(request).reads == ()
    kv = kaas.local.LocalKV()
    kaas.local.invoke((request, {}), kv)
    assert list(kv.store) == ["c", "a"]
    assert not kv.get("a").any()


def test_a_request_is_the_same_after_a_way_through_its_dictionary() -> None:
    request = chain(2)
    request.reKey({"A": "elsewhere"})
    form = request.toDict()
    again = kaas.kaasReq.fromDict(form)
    assert (again.kernels, again.bufferMap, again.nIter) == (request.kernels, request.bufferMap, 1)
    assert again.toDict() == form
    assert [buffer["name"] for buffer in form["kernels"][1]["inputs"]] == ["layer0_C", "layer1_B"]
    read = request_from_json(form)
    assert [spec.store_key for spec in read.buffers if not spec.ephemeral] == ["elsewhere", "constants", "constants"]
    assert read.kernels[0].arguments[:3] == lower(request).request.kernels[0].arguments[:3]


def test_a_program_may_change_a_request_that_has_run() -> None:
    kv = kaas.local.LocalKV()
    kv.put("constants", np.diag(np.full(16, 2, np.float32)))
    kv.put("A", np.ones((16, 16), np.float32))
    request = chain(1)
    request.kernels[0].ioTypes[2] = "io"
    kaas.local.invoke((request, {}), kv)
    assert "layer0_C" not in kv.store
    request.kernels[0].ioTypes[2] = "o"
    kaas.local.invoke((request, {}), kv)
    assert (kv.get("layer0_C").view(np.float32) == 2).all()


def test_requests_fail_once_one_has_cost_the_device() -> None:
    device = OwnDevice("emulator")
    executor: Any = device._engine.executor
    explain = executor.explain

    def lose(error: Any, *rest: Any) -> Any:
        error.device_lost = True
        return explain(error, *rest)

    executor.explain = lose
    buffer = kaas.bufferSpec("x", 4)
    literals = [kaas.literalSpec("Q", 1 << 40)]
    outside = lower(
        kaas.kaasReq([kaas.kernelSpec(FAULTS, "writeAtKern", (1,), (1,), literals=literals, arguments=[(buffer, "o")])])
    )
    with pytest.raises(KernelFaultError):
        device.run(outside, {})
    while not device._lost:
        device._engine._thread.join()
    with pytest.raises(UnavailableError, match="cost this process its device"):
        device.run(outside, {})


def test_specs_compare_by_name_and_tell_uses_apart() -> None:
    a, b, c = (kaas.bufferSpec(name, 8) for name in "abc")
    assert a == kaas.bufferSpec("a", 9, key="k") != b
    kernel = kaas.kernelSpec("x/../y.ptx", "k", (1,), (1,), arguments=[(a, "i"), (b, "io"), (c, "o"), (c, "t")])
    assert kernel == kaas.kernelSpec("z/y.ptx", "k", (2,), (2,))
    assert (kernel.name, kernel.libPath.is_absolute()) == ("y.k", True)
    assert [spec.name for spec in kernel.inputs + kernel.outputs + kernel.temps] == ["a", "b", "b", "c", "c"]
    assert kernel.uniqueOutputs == [c]
    assert str(kaas.literalSpec.fromDict({"type": "f", "val": 2.5})) == "Literal f 2.5"


def test_what_cannot_be_is_refused() -> None:
    buffer = kaas.bufferSpec("a", 8)
    with pytest.raises(kaas.KaasError, match="no literals of type 'z'"):
        kaas.literalSpec("z", 1)
    with pytest.raises(kaas.KaasError, match="cutlass: the original's own libraries"):
        kaas.kernelSpec(kaas.builtins["cutlass"], "sgemm0", (1,), (1,))
    for arguments, dimensions, message in (
        ([(buffer, "x")], (1,), "'x'"),
        ([(buffer, "o")], (), "not 0"),
        ([(buffer, "i")], (1,), "writes nothing"),
    ):
        with pytest.raises(kaas.KaasError, match=message):
            lower(kaas.kaasReq([kaas.kernelSpec(DOT, "sumKern", dimensions, (1,), arguments=arguments)]))


def test_metrics_of_several_are_added_up() -> None:
    ours, theirs = profiling.profCollection(detail=True), profiling.profCollection(detail=True)
    for collection, values in ((ours, (1, 2)), (theirs, (3, 10))):
        for value in values:
            collection.mod("group")["n"].increment(value)
    theirs["only"].update(2)
    theirs["only"].increment(3)
    ours.merge(theirs)
    report = ours.report(includeEvents=True)
    assert report["only"]["events"] == [5]
    assert report["group"]["n"] | {"events": []} == {
        "total": 16, "mean": 4, "min": 1, "max": 10, "std": np.std([1, 2, 3, 10]), "p50": 2.5, "events": [],
        "p90": np.quantile([1, 2, 3, 10], 0.9), "p99": np.quantile([1, 2, 3, 10], 0.99),
    }  # fmt: skip
    assert report["group"]["n"]["events"] == [1, 2, 3, 10]
    assert profiling.reportTimers(ours) == {"only": 5}
    assert [name for name, _ in ours.getMods()] == ["group"]
    ours.reset()
    assert ours.report() == {"group": {}}
    ours["none"]
    with pytest.raises(RuntimeError, match="none: the metric has no events"):
        ours.report()
