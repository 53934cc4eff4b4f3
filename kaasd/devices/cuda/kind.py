"""The CUDA GPU's entry in the registry, and how many this machine has.

They are counted in a process of its own, ``python -m kaasd.devices.cuda.kind``, which prints one line of JSON: the daemon's front
never loads the driver, which may hang or crash, and what it starts would be inherited.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from kaasd.devices.base import Device, DeviceKind, DeviceUnavailable, Found, LibraryCompiler

_TIMEOUT_S = 60.0
"""Initialising takes 0.2 s on an H100, and some seconds more a GPU where the driver's persistence mode is off."""


def count_gpus() -> int:
    """Return how many GPUs the CUDA driver finds, at least one. Raises ``DeviceUnavailable`` with the reason where none."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", __name__],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise DeviceUnavailable(f"the CUDA driver did not answer within {_TIMEOUT_S:g} seconds") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [""])[-1]
        raise DeviceUnavailable(f"looking for GPUs ended with exit status {error.returncode}: {last}") from None
    answer = json.loads(child.stdout)
    if reason := answer.get("reason"):
        raise DeviceUnavailable(reason)
    return int(answer["gpus"])


def _find(_: int) -> Found:
    try:
        count = count_gpus()
    except DeviceUnavailable as error:
        return Found([], str(error))
    return Found([f"cuda:{ordinal}" for ordinal in range(count)], f"the CUDA driver finds {count} GPU{'s' * (count != 1)}")


def _open(name: str, _: None, code_cache: Path | None, runs: int) -> Device:
    try:
        from kaasd.devices.cuda.device import CudaDevice
        from kaasd.devices.cuda.driver import see_only
    except ImportError as error:
        raise DeviceUnavailable(f"{name} cannot be opened: cuda-bindings is not installed ({error})") from error
    return CudaDevice(see_only(int(name.removeprefix("cuda:"))), name=name, code_cache=code_cache, runs=runs)


def _compiler(target: str) -> LibraryCompiler:
    from kaasd.devices.cuda.ptxas import PtxasCompiler

    return PtxasCompiler(target)


KIND = DeviceKind(
    "cuda", pattern=r"cuda:(0|[1-9]\d{0,3})", example="cuda:N", find=_find, open=_open, compiler=_compiler, has_spares=True
)


def main() -> None:
    """Print ``{"gpus": n}`` or ``{"reason": "…"}``."""
    try:
        from kaasd.devices.cuda.driver import initialize
    except ImportError as error:
        answer: dict[str, object] = {"reason": f"cuda-bindings is not installed ({error})"}
    else:
        try:
            answer = {"gpus": initialize()}
        except DeviceUnavailable as error:
            answer = {"reason": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
