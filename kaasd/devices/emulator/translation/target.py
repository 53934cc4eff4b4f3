"""What decides what becomes of a library, as text. It is cheap to import: a device that has its code compiled needs no more."""

from __future__ import annotations

import json
from functools import cache
from hashlib import sha256
from pathlib import Path

import llvmlite

from kaasd.devices.emulator.codegen.machine_code import host
from kaasd.devices.emulator.ptx.architecture import PtxSupport

_PACKAGE = Path(__file__).parent.parent


@cache
def generator() -> str:
    """Return what names the code that generates code: its sources, and the version of LLVM's package."""
    digest = sha256(llvmlite.__version__.encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def target_text(support: PtxSupport, checks: frozenset[str]) -> str:
    """Return all that decides what becomes of a library, as text."""
    return json.dumps(
        {
            "compute_capability": support.compute_capability,
            "ptx_version": support.version,
            "checks": sorted(checks),
            "host": host(),
            "generator": generator(),
        }
    )
