"""Devices by name."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kaasd.devices import registry as opening
from kaasd.devices.base import DeviceUnavailable
from kaasd.devices.cuda import kind as cuda
from kaasd.devices.emulator.options import EmulatorOptions


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[int]:
    """Let the machine have as many GPUs as the test's parameter says; the list has one entry each time it is asked."""
    asked: list[int] = []

    def count() -> int:
        asked.append(request.param)
        if not request.param:
            raise DeviceUnavailable("this machine has no CUDA driver")
        return int(request.param)

    monkeypatch.setattr(cuda, "count_gpus", count)
    return asked


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["auto"], ["cuda:0", "cuda:1"]),
        (["cuda:1", "auto"], ["cuda:1", "cuda:0"]),
        (["emulator", "cuda:1", "emulator"], ["emulator", "cuda:1"]),
    ],
)
def test_names_on_a_machine_of_two_gpus(gpus: list[int], names: list[str], expected: list[str]) -> None:
    assert opening.available(names) == expected
    assert len(gpus) == 1


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_auto_without_a_gpu_is_the_emulated_device_and_says_why_once(gpus: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert opening.available(["auto", "auto"]) == ["emulator"]
    assert [record.getMessage() for record in caplog.records] == ["Device auto: using emulator; this machine has no CUDA driver"]


@pytest.mark.parametrize("gpus", [1], indirect=True)
def test_auto_says_what_it_takes(gpus: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        opening.available(["auto"])
    assert [record.getMessage() for record in caplog.records] == ["Device auto: using cuda:0; the CUDA driver finds 1 GPU"]


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_the_emulated_device_asks_for_no_driver(gpus: list[int]) -> None:
    assert opening.available(["emulator"]) == ["emulator"]
    assert gpus == []


def test_several_emulated_devices_have_numbers() -> None:
    assert opening.available(["emulator"], emulator_count=3) == ["emulator:0", "emulator:1", "emulator:2"]
    assert opening.available(["emulator:2", "emulator"], emulator_count=3) == ["emulator:2", "emulator:0", "emulator:1"]
    with pytest.raises(DeviceUnavailable, match="there is no emulator:3: there is only emulator:0, emulator:1, emulator:2"):
        opening.available(["emulator:3"], emulator_count=3)
    with pytest.raises(DeviceUnavailable, match="there is no emulator:0: there is only emulator"):
        opening.available(["emulator:0"])


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_auto_without_a_gpu_takes_all_emulated_devices(gpus: list[int]) -> None:
    assert opening.available(["auto"], emulator_count=2) == ["emulator:0", "emulator:1"]


def test_an_emulated_device_has_its_name_and_its_options() -> None:
    settings = SimpleNamespace(
        emulator_memory_bytes=1 << 20,
        emulator_checks=("races",),
        emulator_seed=2**60 + 1,
        emulator_compute_capability=(8, 6),
        emulator_ptx_version=(8, 7),
        emulator_multiprocessors=84,
        emulator_shared_memory_bytes=99 << 10,
        emulator_cores=3,
    )
    options = opening.options_from_text("emulator:1", opening.options_to_text("emulator:1", settings))
    assert options == EmulatorOptions(1 << 20, ("races",), 2**60 + 1, (8, 6), (8, 7), 84, 99 << 10, 3)
    with closing(opening.open_device("emulator:1", options)) as device:
        properties = device.properties
        assert (properties.name, properties.memory_bytes, properties.compute_capability) == ("emulator:1", 1 << 20, (8, 6))
        assert (properties.multiprocessor_count, properties.max_shared_memory_bytes) == (84, 99 << 10)


def test_a_kind_without_options_is_told_none() -> None:
    text = opening.options_to_text("cuda:0", SimpleNamespace())
    assert opening.options_from_text("cuda:0", text) is None


def test_an_option_that_is_no_setting_of_the_daemon_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = replace(opening.kind_of("emulator"), name="small", pattern="small")
    monkeypatch.setattr(opening, "KINDS", (kind,))
    settings = SimpleNamespace(small_memory_bytes=1 << 20)
    with pytest.raises(DeviceUnavailable, match="small cannot be used: kaasd has no setting small_checks for its option"):
        opening.options_to_text("small", settings)


def test_the_registry_loads_neither_driver_nor_compiler() -> None:
    code = "import sys, kaasd.devices.registry; print(sorted({'cuda', 'llvmlite', 'numpy'} & sys.modules.keys()))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "[]\n"


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [(0, "there is no cuda:3: this machine has no CUDA driver"), (2, "the CUDA driver finds 2 GPUs")],
    indirect=["gpus"],
)
def test_a_gpu_that_is_not_there(gpus: list[int], reason: str) -> None:
    with pytest.raises(DeviceUnavailable, match=reason):
        opening.available(["emulator", "cuda:3"])


@pytest.mark.parametrize(
    "name", ["", "cuda", "cuda:", "cuda:-1", "cuda:01", "cuda:1x", "gpu", "Emulator", "cuda:99999", "emulator:"]
)
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="a device is auto, emulator, emulator:N, or cuda:N"):
        opening.available([name])
    with pytest.raises(ValueError, match=f"there is no device '{name}'"):
        opening.open_device(name)


def test_auto_is_no_device_to_open() -> None:
    with pytest.raises(ValueError, match="there is no device 'auto'"):
        opening.open_device("auto")


def child_printing(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the process that counts the GPUs run ``code`` instead."""
    run = subprocess.run
    monkeypatch.setattr(cuda.subprocess, "run", lambda _, **options: run([sys.executable, "-c", code], **options))


def test_the_count_comes_from_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    child_printing(monkeypatch, """print('{"gpus": 3}')""")
    assert cuda.count_gpus() == 3


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("""print('{"reason": "the driver is too old"}')""", "the driver is too old"),
        ("import os; os.abort()", "looking for GPUs ended with exit status -6"),
        ("raise OSError('no such thing')", "ended with exit status 1: OSError: no such thing"),
    ],
)
def test_why_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch, code: str, reason: str) -> None:
    child_printing(monkeypatch, code)
    with pytest.raises(DeviceUnavailable, match=reason):
        cuda.count_gpus()


def test_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_TIMEOUT_S", 0.1)
    child_printing(monkeypatch, "import threading; threading.Event().wait()")
    with pytest.raises(DeviceUnavailable, match=r"did not answer within 0\.1 seconds"):
        cuda.count_gpus()


def test_cuday_on_this_machine_gives_a_count_or_a_reason() -> None:
    child = subprocess.run([sys.executable, "-m", cuda.__name__], capture_output=True, text=True, check=True)
    answer = json.loads(child.stdout)
    assert len(answer) == 1
    assert answer.get("gpus", 0) > 0 or answer["reason"]


def test_a_device_on_its_workers_thread_runs_one_request_at_a_time() -> None:
    assert [opening.kind_of(name).runs_aside for name in ("cuda:3", "emulator", "emulator:1")] == [True, False, False]
