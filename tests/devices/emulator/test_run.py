"""Runs of the emulated device: started again, stopped, and with buffers that are closed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from kaasd.devices.base import Stopped
from kaasd.devices.emulator.runtime import run as run_module
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.devices.emulator.runner import array_of, buffer_of, kernel, launch, read_write, run_launches


@pytest.fixture
def device() -> Iterator[EmulatedDevice]:
    device = EmulatedDevice()
    yield device
    device.close()


@contextmanager
def stops(device: EmulatedDevice) -> Iterator[None]:
    """Stop what runs meanwhile, again and again: one stop could come before the run."""
    over = threading.Event()

    def stop() -> None:
        while not over.wait(0.02):
            device.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "body",
    ["LOOP: bra LOOP;", "LOOP: bar.sync 0; bra LOOP;", "LOOP: shfl.sync.idx.b32 %n, %i, 0, 31, 0xFFFFFFFF; bra LOOP;", "call f;"],
)
def test_stop(device: EmulatedDevice, body: str) -> None:
    before = ".func f () { L: call f2; bra L; ret; }\n.func f2 () { ret; }" if "call" in body else ""
    module = device.load(kernel(body, before=before))
    buffer = buffer_of(device, np.zeros(1, "u4"))
    run = device.prepare([launch(module, "k", (4, 1, 1), (64, 1, 1), read_write("x", buffer))], 1)
    with stops(device), pytest.raises(Stopped):
        run.start()


def test_stop_between_launches(device: EmulatedDevice) -> None:
    module = device.load(kernel("red.global.add.u32 [%p0], 1;"))
    buffer = buffer_of(device, np.zeros(1, "u4"))
    with stops(device), pytest.raises(Stopped):
        run_launches(device, [launch(module, "k", (1, 1, 1), (1, 1, 1), read_write("x", buffer))], 1 << 40)


def test_a_stop_ends_no_later_run(device: EmulatedDevice) -> None:
    """Neither one that came when nothing ran, nor one that ended the run before."""
    module = device.load(kernel("L: ld.volatile.global.u32 %n, [%p0]; setp.eq.u32 %q, %n, 0; @%q bra L; st.global.u32 [%p0], 5;"))
    buffer = buffer_of(device, np.ones(1, "u4"))
    run = device.prepare([launch(module, "k", (1, 1, 1), (1, 1, 1), read_write("x", buffer))], 1)
    device.stop()
    run.start()
    assert array_of(buffer, "u4")[0] == 5
    buffer.zero()
    with stops(device), pytest.raises(Stopped):
        run.start()
    buffer.write(b"\1\0\0\0")
    run.start()
    assert array_of(buffer, "u4")[0] == 5


def test_a_run_does_not_touch_a_closed_buffer(device: EmulatedDevice) -> None:
    module = device.load(kernel("ret;"))
    for role in ("uploads", "zeroed"):
        kept, closed = device.allocate(64 << 10), device.allocate(64 << 10)
        launches = [launch(module, "k", (1, 1, 1), (1, 1, 1), read_write("x", kept))]
        with closing(device.prepare(launches, 1, **{role: [closed]})) as run:
            run.start()
            closed.close()
            with pytest.raises(ValueError, match="released"):
                run.start()


def test_an_empty_buffer(device: EmulatedDevice) -> None:
    module = device.load(kernel("ret;"))
    for role in ("uploads", "zeroed", "downloads"):
        buffer = device.allocate(0)
        launches = [launch(module, "k", (1, 1, 1), (1, 1, 1), read_write("x", buffer))]
        with closing(device.prepare(launches, 1, **{role: [buffer]})) as run:
            run.start()
            assert [bytes(view) for view in (*run.uploads, *run.downloads)] == [b""] * (role != "zeroed")


@pytest.mark.parametrize("shared_bytes", [0, 2 << 20])
def test_a_run_starts_anew(device: EmulatedDevice, shared_bytes: int) -> None:
    """Its buffers from what is uploaded or from zeros, shared memory from zeros, and without code of other files."""
    body = """
    .reg .b64 %z; .reg .b32 %v, %s; ld.param.u64 %z, [p1]; ld.shared.u32 %s, [area]; add.u32 %s, %s, 1; st.shared.u32 [area], %s;
    ld.global.u32 %v, [%p0]; add.u32 %v, %v, %s; st.global.u32 [%p0], %v;
    ld.global.u32 %v, [%z]; add.u32 %v, %v, 1; st.global.u32 [%z], %v;"""
    before = ".extern .shared .align 16 .b8 area[];"
    module = device.load(kernel(body, ".param .u64 p0, .param .u64 p1", before=before))
    x, z = buffer_of(device, np.full(1, 99, "u4")), buffer_of(device, np.full(1, 99, "u4"))
    launches = [
        launch(module, "k", (1, 1, 1), (1, 1, 1), read_write("x", x), read_write("z", z), shared=max(16, shared_bytes)),
    ]
    files = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        files.add(frame.f_code.co_filename)

    with closing(device.prepare(launches, 2, uploads=[x], zeroed=[z], downloads=[x, z])) as run:
        for value in (5, 7):
            run.uploads[0][:] = np.array([value], "u4").tobytes()
            sys.setprofile(note)
            try:
                run.start()
            finally:
                sys.setprofile(None)
            left = [np.frombuffer(view, "u4")[0] for view in run.downloads]
            assert left == [value + 1 + 2, 2]  # the second iteration finds what the first left in shared memory
    root = Path(run_module.__file__).parents[4]
    assert {name for name in files if Path(name).is_relative_to(root / "kaasd")} == {run_module.__file__}
