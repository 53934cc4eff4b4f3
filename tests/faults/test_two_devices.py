"""Two emulated devices of one daemon, each with a worker of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from examples.local_daemon import local_daemon
from kaas.v1 import executor_pb2_grpc
from kaas_client import Client
from kaas_core.errors import InvalidRequestError
from tests.faults.support import as_kaas_error, begin, dot_request, put_dot_inputs, spin, wait_until

NAMES = ["emulator:0", "emulator:1"]


@pytest.fixture(scope="module")
def address(library_root: Path) -> Iterator[str]:
    options = ["--emulator-devices", "2", "--emulator-memory", "64MiB", "--library-root", str(library_root)]
    with local_daemon("--device", "emulator", *options, "--log-level", "ERROR") as address:
        yield address


@pytest.fixture(scope="module")
def kaas(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.fixture
def executor(address: str) -> Iterator[executor_pb2_grpc.ExecutorServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield executor_pb2_grpc.ExecutorServiceStub(channel)


def running(kaas: Client) -> list[int]:
    return [device.running for device in kaas.stats().devices]


def test_requests_go_to_the_device_with_the_fewest(
    kaas: Client, executor: executor_pb2_grpc.ExecutorServiceStub, library_root: Path
) -> None:
    expected = put_dot_inputs(kaas)
    dot = dot_request(str(library_root / "dot.ptx"))
    dot.return_buffers.append("c")
    blockers = [begin(executor, spin(library_root), timeout=100)]
    wait_until(lambda: running(kaas) == [1, 0])
    for _ in range(3):
        reply = executor.Submit(dot, timeout=600)
        assert (reply.device, int.from_bytes(reply.outputs["c"], "little")) == ("emulator:1", expected)
    blockers.append(executor.Submit.future(spin(library_root), timeout=100))
    wait_until(lambda: running(kaas) == [1, 1])
    for blocker in blockers:
        blocker.cancel()
    wait_until(lambda: running(kaas) == [0, 0])


def test_a_device_that_is_named_runs_what_names_it(
    kaas: Client, executor: executor_pb2_grpc.ExecutorServiceStub, library_root: Path, address: str
) -> None:
    put_dot_inputs(kaas)
    dot = dot_request(str(library_root / "dot.ptx"))
    before = kaas.stats().devices
    for name, count in zip(NAMES, (1, 3), strict=True):
        dot.device = name
        assert [executor.Submit(dot, timeout=600).device for _ in range(count)] == [name] * count
    after = kaas.stats().devices
    assert [device.device for device in after] == NAMES
    more = [
        (now.requests_succeeded - then.requests_succeeded, now.kernels_launched - then.kernels_launched)
        for now, then in zip(after, before, strict=True)
    ]
    assert more == [(1, 2), (3, 6)]
    for absent in ("emulator", "emulator:2", "cuda:0"):
        dot.device = absent
        with pytest.raises(grpc.RpcError) as caught:
            executor.Submit(dot, timeout=600)
        error = as_kaas_error(caught.value, address)
        assert isinstance(error, InvalidRequestError)
        assert "it has emulator:0, emulator:1" in error.message


def test_what_one_device_writes_the_other_reads(
    kaas: Client, executor: executor_pb2_grpc.ExecutorServiceStub, library_root: Path
) -> None:
    dot = dot_request(str(library_root / "dot.ptx"))
    for _ in range(2):
        for name in NAMES:
            expected = put_dot_inputs(kaas)
            kaas.put("a", kaas.get("b"))  # a newer version than the device has
            dot.device = name
            executor.Submit(dot, timeout=600)
            b = kaas.get("b", dtype="u4")
            assert kaas.get("c", dtype="u4")[0] == (b * b).sum(dtype="u4") != expected


def test_one_worker_that_dies_leaves_the_other_serving(
    kaas: Client, executor: executor_pb2_grpc.ExecutorServiceStub, library_root: Path
) -> None:
    put_dot_inputs(kaas)
    dot = dot_request(str(library_root / "dot.ptx"))
    dot.device = "emulator:0"
    executor.Submit(dot, timeout=600)
    dead, alive = (device.worker_pid for device in kaas.devices())
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: kaas.devices()[0].state != "ready")
    dot.device = ""
    assert executor.Submit(dot, timeout=600).device == "emulator:1"
    dot.device = "emulator:0"
    assert executor.Submit(dot, timeout=600).device == "emulator:0"
    first, second = kaas.devices()
    assert (first.restarts, first.state, first.worker_pid != dead) == (1, "ready", True)
    assert (second.restarts, second.state, second.worker_pid) == (0, "ready", alive)


def test_a_drained_device_hands_over_to_the_other_under_load(
    kaas: Client, executor: executor_pb2_grpc.ExecutorServiceStub, library_root: Path, address: str
) -> None:
    expected = put_dot_inputs(kaas)
    dot = dot_request(str(library_root / "dot.ptx"))
    dot.return_buffers.append("c")
    command = [sys.executable, "-m", "kaas_client.cli.main", "--address", address, "device"]
    before = [executor.Submit.future(dot, timeout=600) for _ in range(50)]
    subprocess.run([*command, "drain", "emulator:0"], check=True, timeout=600)
    assert [device.state for device in kaas.devices()] == ["draining", "ready"]
    after = [executor.Submit.future(dot, timeout=600) for _ in range(50)]
    for call in before + after:
        assert int.from_bytes(call.result().outputs["c"], "little") == expected
    assert {call.result().device for call in after} == {"emulator:1"}
    dot.device = "emulator:0"
    named = executor.Submit.future(dot, timeout=600)
    subprocess.run([*command, "resume", "emulator:0"], check=True, timeout=600)
    assert named.result().device == "emulator:0"
    assert [device.state for device in kaas.devices()] == ["ready", "ready"]
    ended = subprocess.run([*command, "drain", "emulator:2"], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "name: this server has no device 'emulator:2'; it has emulator:0, emulator:1" in ended.stderr


def test_both_are_listed(address: str) -> None:
    command = [sys.executable, "-m", "kaas_client.cli.main", "--address", address, "-o", "json", "device", "ls"]
    listed = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=600).stdout)
    assert [(device["name"], device["memory_bytes"], device["state"]) for device in listed] == [
        (name, 64 << 20, "ready") for name in NAMES
    ]


def test_one_of_several_can_be_chosen() -> None:
    options = ["--emulator-devices", "3", "--device", "emulator:1", "--log-level", "ERROR"]
    with local_daemon(*options) as address, Client(address) as kaas:
        assert [device.name for device in kaas.devices()] == ["emulator:1"]


def test_one_that_is_not_there_ends_the_daemon_with_a_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kaasd", "--store", str(tmp_path), "--emulator-devices", "2", "--device", "emulator:2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("kaasd: there is no emulator:2: ")
