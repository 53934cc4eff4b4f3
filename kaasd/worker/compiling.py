"""Waiting for code: libraries and kernels that are compiled beside the worker, while it serves others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from kaas_core.errors import KaasError
from kaasd.compiler.compiler import Compilation
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.executor import Executor, Steps
from kaasd.worker.programs import NotCompiled, Program

T = TypeVar("T")


def with_libraries(executor: Executor, attempt: Callable[[], T], cancellation: Cancellation) -> Steps[T]:
    """Return what ``attempt`` does, once the libraries are compiled for which it raises ``NotCompiled``. Raises as it does."""
    compiler = executor.compiler
    with ExitStack() as held:
        while True:
            try:
                return attempt()
            except NotCompiled as needed:
                assert compiler is not None
                started = [compiler.start(library) for library in needed.libraries]
            for compilation in started:
                held.callback(compilation.release)
            for compilation in started:
                yield from _wait(compilation, cancellation)


def load_kernels(executor: Executor, program: Program, cancellation: Cancellation) -> Steps[None]:
    """Have all kernels of a program compiled, and loaded. Raises ``KaasError``, naming the kernel."""
    compiler = executor.compiler
    assert compiler is not None
    with ExitStack() as held:
        started = []
        for index, library, kernel in program.uncompiled():
            compilation = compiler.start(library, kernel.attributes.name)
            held.callback(compilation.release)
            started.append((index, compilation, kernel))
        for index, compilation, kernel in started:
            yield from _wait(compilation, cancellation)
            try:
                kernel.load_code(compilation.result())
            except KaasError as error:
                error.message = f"kernels[{index}].library: {error.message}"
                raise


def _wait(compilation: Compilation, cancellation: Cancellation) -> Steps[None]:
    while not compilation.done():
        yield compilation
        cancellation.check()
