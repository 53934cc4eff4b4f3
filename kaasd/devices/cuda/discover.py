"""Counts the GPUs of this machine, in a process of its own: ``python -m kaasd.devices.cuda.discover`` prints one line of JSON.

The daemon's front never loads the driver: a driver may hang or crash, and what it starts would be inherited.
"""

from __future__ import annotations

import json
import subprocess
import sys

from kaasd.devices.base import DeviceUnavailable

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
