"""What is done without running: a library is described, a request made ready."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing

import pytest

from kaas.v1 import library_pb2, types_pb2
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.devices.emulator.runtime.run import EmulatedRun
from kaasd.libraries.registry import Libraries, describe_library
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Job
from kaasd.worker.preparation import inspect
from tests.conformance.test_executor import SMALL, Bench, finish, numbers

PTX = b"""//
.version 8.0
.target sm_90
.address_size 64
.visible .entry narrow(.param .u64 a, .param .u16 b) .reqntid 64, 3 .reqnctapercluster 2, 2
{
    .reg .b32 %r<2>;
    .shared .align 4 .b8 scratch[48];
    mov.u32 %r1, scratch;
    ret;
}
.visible .entry bare()
{
    ret;
}
"""


@pytest.fixture
def device() -> Iterator[EmulatedDevice]:
    with closing(EmulatedDevice()) as opened:
        yield opened


@pytest.mark.parametrize("stored", [True, False])
def test_a_library_is_described(stored: bool, bench: Bench) -> None:
    library_id = f"sha256:{hashlib.sha256(PTX).hexdigest()}"
    if stored:
        Libraries(bench.store).put(describe_library(PTX), PTX)
    job = Job(inspect(bench.executor, library_id if stored else "", None if stored else PTX, Cancellation()))
    bare = library_pb2.KernelInfo(name="bare", max_threads_per_block=1024)
    narrow = library_pb2.KernelInfo(
        name="narrow",
        parameter_size_bytes=[8, 2],
        static_shared_memory_bytes=48,
        max_threads_per_block=192,
        parameter_alignment_bytes=[8, 2],
        parameter_names=["a", "b"],
    )
    narrow.required_block.CopyFrom(types_pb2.Dim3(x=64, y=3, z=1))
    narrow.cluster.CopyFrom(types_pb2.Dim3(x=2, y=2, z=1))
    assert finish([job]) == [
        library_pb2.InspectLibraryResponse(
            id=library_id, kind=library_pb2.LIBRARY_KIND_PTX, kernels=[bare, narrow], device="emulator"
        )
    ]


def test_a_request_that_is_prepared_runs_with_what_was_made_ready(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[EmulatedRun] = []
    started: list[EmulatedRun] = []
    start = EmulatedRun.start
    monkeypatch.setattr(EmulatedRun, "warm", lambda run: warmed.append(run))
    monkeypatch.setattr(EmulatedRun, "start", lambda run, *args: started.append(run) or start(run, *args))
    request = bench.multiply(SMALL)
    bench.prepare(request)
    assert len(warmed) == 1
    assert started == []
    assert bench.executor.programs.get(request).requests == 0
    for key in "ab":
        bench.put(key, numbers(ord(key), SMALL))
    bench.run(request)
    assert started == warmed
