"""What requests need on a device, and what bringing it takes."""

from __future__ import annotations

import pytest

from kaas.worker.v1 import worker_pb2
from kaas_core.request import BufferSpec
from kaas_core.uses import Use
from kaasd.front.needs import BYTES_A_S, CODE_S, START_S, Needs, StoredInput, dropped
from kaasd.ipc.messages import SerializedRequest

REQUEST = SerializedRequest.of(b"a request")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("spec", "use", "stays"),
    [
        (BufferSpec("b", 100, constant=True), Use(0, True, False, None), True),
        (BufferSpec("b", MIB), Use(0, True, False, None), True),
        (BufferSpec("b", 100), Use(0, True, False, None), False),
        (BufferSpec("b", MIB), Use(0, True, False, (0, 1)), False),
        (BufferSpec("b", MIB), Use(0, False, False, (0, 1)), False),
        (BufferSpec("b", MIB, ephemeral=True), Use(0, True, False, None), False),
    ],
    ids=["constant", "large", "small", "written", "not read", "ephemeral"],
)
def test_what_stays_on_a_device(spec: BufferSpec, use: Use, stays: bool) -> None:
    assert StoredInput.of(spec, use) == (StoredInput("b", 0, spec.size_bytes) if stays else None)


def test_other_keys_and_what_is_given() -> None:
    needs = Needs()
    stays = {"a": StoredInput("a", 0, MIB), "b": StoredInput("key", 4096, MIB)}
    (code, a, b) = needs.of(REQUEST, stays, {}, ())
    assert (code.key, code.load_s) == (REQUEST.digest, CODE_S)
    assert (a.key, b.key) == (stays["a"], stays["b"])
    assert a.load_s == pytest.approx(START_S + MIB / BYTES_A_S)
    assert [datum.key for datum in needs.of(REQUEST, stays, {"a": "other"}, ())][1] == StoredInput("other", 0, MIB)
    assert [datum.key for datum in needs.of(REQUEST, stays, {"x": "other"}, {"b": b""})] == [REQUEST.digest, stays["a"]]
    assert needs.of(REQUEST, stays, {"x": "y"}, {"z": b""}) == (code, a, b)


def test_times_are_learnt() -> None:
    needs = Needs()
    stays = {"a": StoredInput("a", 0, MIB)}
    before = needs.of(REQUEST, stays, {}, ())
    executed = worker_pb2.Executed(brought_bytes=100 * MIB, new_program=True)
    executed.reply.timing.load_ns, executed.reply.timing.plan_ns = 10_000_000_000, 70_000_000
    for _ in range(60):
        needs.learn(REQUEST, executed)
    code, a = needs.of(REQUEST, stays, {}, ())
    assert code.load_s == 0.07
    assert a.load_s == pytest.approx(0.1, rel=0.05) and a.load_s > before[1].load_s
    needs.learn(REQUEST, worker_pb2.Executed(brought_bytes=10))  # tells little
    assert needs.of(REQUEST, stays, {}, ()) == (code, a)


def test_the_first_rate_that_is_seen_counts_alone_and_for_all() -> None:
    needs, other = Needs(), SerializedRequest.of(b"another request")
    stays = {"a": StoredInput("a", 0, MIB)}
    before = needs.of(other, stays, {}, ())
    executed = worker_pb2.Executed(brought_bytes=100 * MIB)
    executed.reply.timing.load_ns = 1_000_000_000
    assert needs.learn(REQUEST, executed)
    after = needs.of(other, stays, {}, ())
    assert after[1].load_s == pytest.approx(START_S + 0.01) and after[1].load_s > before[1].load_s
    executed.reply.timing.load_ns = 900_000_000
    assert not needs.learn(REQUEST, executed), "nearly the same"
    assert needs.of(other, stays, {}, ()) == after
    executed.reply.timing.load_ns = 20_000_000
    assert needs.learn(REQUEST, executed)
    assert needs.of(other, stays, {}, ())[1].load_s < after[1].load_s


def test_what_a_worker_has_dropped() -> None:
    executed = worker_pb2.Executed(dropped=[worker_pb2.ResidentValue(key="k", offset_bytes=1, size_bytes=2)])
    assert dropped(executed) == [StoredInput("k", 1, 2)]
