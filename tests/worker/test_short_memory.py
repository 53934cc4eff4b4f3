"""A device that has less memory than the executor believes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kaas_core.errors import CancelledError, GroupLimitError, OutOfDeviceMemoryError
from kaas_core.request import Access, BufferArgument, BufferSpec, KernelSpec, Request
from kaasd.devices.base import Device, OutOfMemory
from kaasd.devices.emulator.options import EmulatorOptions
from kaasd.devices.registry import open_device
from kaasd.libraries.registry import Libraries, content_id, describe_library
from kaasd.store.lmdb_store import LmdbStore
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Invocation, execute
from kaasd.worker.executor import Executor
from kaasd.worker.inputs import BoundRequest
from kaasd.worker.residency import Owner
from tests.conformance.launching import library
from tests.conformance.test_executor import LARGE, Bench, finish, numbers, serialize


def test_what_the_device_lacks_is_freed_and_asked_for_again(tmp_path: Path) -> None:
    with (
        LmdbStore(tmp_path / "store", limit_bytes=256 << 20) as store,
        closing(open_device("emulator", EmulatorOptions(memory_bytes=13 * LARGE))) as device,
    ):
        libraries = Libraries(store)
        libraries.put(describe_library(library("dot")), library("dot"))
        with closing(Executor(device, store, libraries, memory_limit_bytes=1 << 40)) as executor:
            bench = Bench(executor, store)
            for seed in range(4):
                bench.put(f"v{seed}", numbers(seed, LARGE))
                bench.run(bench.multiply(LARGE), {"a": f"v{seed}", "b": f"v{seed}", "p": f"p{seed}"})
                bench.run(bench.multiply(LARGE), {"a": f"v{seed}", "b": "v0", "p": f"q{seed}"})
                assert np.array_equal(bench.get(f"q{seed}"), numbers(seed, LARGE) * numbers(0, LARGE))
            with pytest.raises(OutOfDeviceMemoryError, match=str(24 * LARGE)):
                bench.run(bench.multiply(2 * LARGE), inputs=dict.fromkeys("ab", bytes(8 * LARGE)))


def test_requests_that_wait_for_memory_get_it_in_turn(tmp_path: Path, device: Device) -> None:
    with LmdbStore(tmp_path / "store", limit_bytes=256 << 20) as store:
        libraries = Libraries(store)
        libraries.put(describe_library(library("dot")), library("dot"))
        with closing(Executor(device, store, libraries, memory_limit_bytes=13 * LARGE)) as executor:
            bench = Bench(executor, store)
            for seed in range(6):
                bench.put(f"v{seed}", numbers(seed, LARGE))
            request = bench.multiply(LARGE)

            def invocation(seed: int) -> Invocation:
                keys = {"a": f"v{seed}", "b": f"v{5 - seed}", "p": f"p{seed}"}
                return Invocation(request, keys, {}, [], Cancellation())

            calls = [invocation(seed) for seed in range(4)]
            jobs = [execute(executor, call) for call in calls]
            program = executor.programs.get(request)
            with closing(BoundRequest(executor, program, program.with_keys({"a": "v4", "b": "v5"}), {})):
                assert [job.poll() for job in jobs] == [None] * 4
            calls[1].cancellation.reason = CancelledError("the caller went away")
            for later in (3, 2):  # It is the first one's turn, though the memory is there.
                assert jobs[later].poll() is None
            assert len(executor.memory_turns) == 4
            with pytest.raises(CancelledError):
                jobs[1].poll()
            assert len(executor.memory_turns) == 3
            for job in (jobs[0], jobs[2], jobs[3]):
                finish([job])
            for seed in (0, 2, 3):
                assert np.array_equal(bench.get(f"p{seed}"), numbers(seed, LARGE) * numbers(5 - seed, LARGE))


@pytest.mark.parametrize(("group_limit", "error"), [(0, OutOfDeviceMemoryError), (11 * LARGE, GroupLimitError)])
def test_what_can_never_fit_waits_for_nobody_and_evicts_nothing(
    tmp_path: Path, device: Device, group_limit: int, error: type[Exception]
) -> None:
    with LmdbStore(tmp_path / "store", limit_bytes=256 << 20) as store:
        libraries = Libraries(store)
        libraries.put(describe_library(library("dot")), library("dot"))
        limit = 23 * LARGE
        with closing(Executor(device, store, libraries, memory_limit_bytes=limit)) as executor:
            bench = Bench(executor, store)
            for seed in range(4):
                bench.put(f"v{seed}", numbers(seed, LARGE))
            small, large = bench.multiply(LARGE), bench.multiply(2 * LARGE if not group_limit else LARGE)
            program = executor.programs.get(small)
            bench.run(small, {"a": "v2", "b": "v3", "p": "p0"})
            held = executor.memory.held_bytes
            with closing(BoundRequest(executor, program, program.with_keys({"a": "v2", "b": "v3"}), {}, owner=Owner("a"))):
                inputs = {"a": bytes(8 * LARGE), "b": bytes(8 * LARGE)} if not group_limit else {}
                keys = {"a": "v0", "b": "v1", "p": "p1"} if group_limit else {}
                never = Invocation(large, keys, inputs, [], Cancellation(), group="a", max_device_memory_bytes=group_limit)
                job = execute(executor, never)
                with pytest.raises(error):
                    job.poll()
                assert len(executor.memory_turns) == 0
            assert executor.memory.held_bytes == held


def test_one_value_for_two_buffers_takes_the_room_of_one(tmp_path: Path, device: Device) -> None:
    with LmdbStore(tmp_path / "store", limit_bytes=256 << 20) as store:
        libraries = Libraries(store)
        libraries.put(describe_library(library("dot")), library("dot"))
        with closing(Executor(device, store, libraries, memory_limit_bytes=9 * LARGE)) as executor:
            bench = Bench(executor, store)
            bench.put("v", numbers(1, LARGE))
            bench.run(bench.multiply(LARGE), {"a": "v", "b": "v", "p": "p"})
            assert np.array_equal(bench.get("p"), numbers(1, LARGE) ** 2)


BIG = b"""//
.version 8.0
.target sm_90
.address_size 64
.global .align 4 .b8 big[4194304];
.visible .entry touch(.param .u64 at)
{
    .reg .b64 %rd<2>;
    mov.u64 %rd1, big;
    ret;
}
"""


def test_a_library_that_the_device_has_no_room_for(tmp_path: Path) -> None:
    with (
        LmdbStore(tmp_path / "store", limit_bytes=64 << 20) as store,
        closing(open_device("emulator", EmulatorOptions(memory_bytes=1 << 20))) as device,
    ):
        libraries = Libraries(store)
        libraries.put(describe_library(BIG), BIG)
        with closing(Executor(device, store, libraries)) as executor:
            bench = Bench(executor, store)
            buffer = BufferSpec("a", 4)
            kernel = KernelSpec(content_id(BIG), "touch", (1, 1, 1), (1, 1, 1), (BufferArgument("a", Access.OUTPUT),))
            with pytest.raises(OutOfDeviceMemoryError, match=r"kernels\[0\]\.library: the library's code finds no room"):
                bench.run(serialize(Request((kernel,), (buffer,))))


@pytest.mark.parametrize("method", ["prepare", "download"])
def test_copies_that_the_host_has_no_room_for(method: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in "ab":
        bench.put(key, numbers(1, LARGE))

    def refuse(*_: object, **__: object) -> None:
        raise OutOfMemory("4096 bytes of page-locked host memory cannot be had")

    with monkeypatch.context() as patch:
        patch.setattr(type(bench.executor.device), method, refuse)
        with pytest.raises(OutOfDeviceMemoryError, match="4096 bytes of page-locked host memory"):
            bench.run(bench.multiply(LARGE))
    bench.run(bench.multiply(LARGE))
    assert np.array_equal(bench.get("p"), numbers(1, LARGE) ** 2)
