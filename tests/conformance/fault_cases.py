"""Runs that end badly, each in a process of its own, since a CUDA context does not survive a fault.

``python -m tests.conformance.fault_cases DEVICE CASE`` prints one line of JSON: what ``Device.run`` raised.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kaasd.devices.base import Device, KernelFault, Stopped
from kaasd.devices.registry import open_device
from tests.conformance.launching import Call, execute, inp, library, out, u32, u64

_FAR = 1 << 40
"""An index that no buffer and no neighbour of it reaches."""
_WORDS = {"a": np.ones(64, np.uint32), "b": np.zeros(64, np.uint32)}
_HARMLESS = Call("writeAtKern", 1, 32, [u64(3), out("a")])


def run_case(device_name: str, case: str) -> dict[str, Any]:
    """Run one case in a new process and return what it printed. The time limit only keeps a defect from hanging the suite."""
    command = [sys.executable, "-m", __name__, device_name, case]
    child = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100)
    assert child.returncode == 0, child.stderr
    result: dict[str, Any] = json.loads(child.stdout)
    return result


def _run(device: Device, calls: list[Call], code: bytes | None = None, iterations: int = 1) -> dict[str, Any]:
    try:
        execute(device, code or library("faults"), calls, _WORDS, iterations)
    except KernelFault as fault:
        return {"fault": fault.fault, "launch": fault.launch_index, "lost": fault.device_lost, "message": fault.message}
    return {"fault": None}


def _spin(device: Device) -> dict[str, Any]:
    """Run a kernel that never ends, and stop it from another thread."""
    ended = threading.Event()
    answer: dict[str, Any] = {}

    def keep_stopping() -> None:
        while not ended.wait(0.01):  # the run may not have begun at the first try
            if not device.stop():
                print(json.dumps({"stopped": False}), flush=True)
                os._exit(0)  # only the end of the process stops it

    stopper = threading.Thread(target=keep_stopping)
    stopper.start()
    try:
        _run(device, [Call("spinKern", 1, 32, [inp("b")])])
    except Stopped:
        answer["stopped"] = True
    ended.set()
    stopper.join()
    answer["usable"] = _run(device, [_HARMLESS]) == {"fault": None}
    return answer


CASES: dict[str, Callable[[Device], dict[str, Any]]] = {
    "none": lambda device: _run(device, [_HARMLESS]),
    "write": lambda device: _run(device, [_HARMLESS, Call("writeAtKern", 2, 32, [u64(_FAR), out("a")])]),
    "read": lambda device: _run(device, [Call("readAtKern", 1, 1, [u64(_FAR), inp("a"), out("b")]), _HARMLESS]),
    "misaligned": lambda device: _run(device, [_HARMLESS, _HARMLESS, Call("misalignedKern", 1, 32, [out("a")])]),
    "trap": lambda device: _run(device, [Call("trapKern", 1, 32, [out("a")])]),
    "expect": lambda device: _run(
        device,
        [
            _HARMLESS,
            Call("expectKern", 1, 64, [u64(64), u32(1), inp("a")]),
            Call("expectKern", 1, 64, [u64(64), u32(1), inp("b")]),
        ],
    ),
    "in a later iteration": lambda device: _run(
        device,
        [Call("expectKern", 1, 1, [u64(1), u32(0), inp("b")]), Call("writeAtKern", 1, 1, [u64(0), out("b")])],
        iterations=2,
    ),
    "spin": _spin,
}


def main() -> None:
    """Run the case named on the command line."""
    device = open_device(sys.argv[1])
    try:
        result = CASES[sys.argv[2]](device)
    finally:
        device.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
