"""The native scheduler in this process: made by LLVM in a quarter of a second, or as another process has made and kept it."""

from __future__ import annotations

from functools import cache
from hashlib import sha256

from kaasd.devices.code_directory import CodeDirectory
from kaasd.devices.emulator.codegen.machine_code import NativeCode, host, to_object
from kaasd.devices.emulator.translation.target import generator


@cache
def native_scheduler(code: CodeDirectory | None = None) -> NativeCode:
    """Return the native scheduler, the same for all kernels of the process; it is kept in ``code``."""
    key = sha256(f"scheduler\0{host()}\0{generator()}".encode()).hexdigest()
    content = None if code is None else code.get(key)
    if content is None:
        # Nobody who finds it has to know how code is generated.
        from kaasd.devices.emulator.runtime.scheduler import build_scheduler

        content = to_object(build_scheduler())
        if code is not None:
            code.put(key, content)
    return NativeCode(content)
