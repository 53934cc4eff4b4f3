"""The compiler process: compiles libraries for one worker, one at a time, and ends with it.

It has no device and no store, so that it can be killed at any time. Started as
``python -m kaasd.compiler.main SOCKET_FD WORKER_PID MEMORY_BYTES LOG_LEVEL``.
"""

from __future__ import annotations

import logging
import re
import resource
import signal
import socket
import sys
from pathlib import Path

from kaas.worker.v1 import compiler_pb2
from kaasd.devices.base import LibraryCompiler
from kaasd.devices.registry import kind_named
from kaasd.ipc.channel import BlockingChannel
from kaasd.libraries import UnsupportedLibrary
from kaasd.libraries.heap import heap_users
from kaasd.libraries.image import read_image
from kaasd.process import end_with_parent, start_log

FULL = 0.9
"""Of the memory that it may have."""

_log = logging.getLogger(__name__)


def serve(channel: BlockingChannel[compiler_pb2.Compile]) -> None:
    """Compile what is asked for, until the worker closes its end."""
    compilers: dict[tuple[str, str], LibraryCompiler] = {}
    channel.send(compiler_pb2.Compiled())
    while (wanted := channel.receive()) is not None:
        answer = compiler_pb2.Compiled()
        try:
            answer.content = _compile(compilers, wanted)
        except UnsupportedLibrary as error:
            answer.unsupported = str(error)
        except Exception as error:
            if isinstance(error, MemoryError) or (isinstance(error, SystemError) and _has_filled_memory()):
                compilers.clear()
                answer.out_of_memory = True
            else:
                _log.exception("cannot compile %s", wanted.kernel or "a library")
                answer.failed = True
        channel.send(answer)


def _compile(compilers: dict[tuple[str, str], LibraryCompiler], wanted: compiler_pb2.Compile) -> bytes:
    where = wanted.kind, wanted.target
    if where not in compilers:
        make = kind_named(wanted.kind).compiler
        assert make is not None
        compilers[where] = make(wanted.target)
    compiler = compilers[where]
    if wanted.kernel:
        return compiler.compile(wanted.image, wanted.kernel)
    return compiler_pb2.CompiledLibrary(
        description=compiler.describe(wanted.image), heap_users=heap_users(read_image(wanted.image).units)
    ).SerializeToString()


def _has_filled_memory() -> bool:
    """Whether this process has had nearly all memory that it may have: then code in C may have failed without saying why."""
    peak = re.search(r"^VmPeak:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return peak is not None and limit != resource.RLIM_INFINITY and int(peak[1]) << 10 > limit * FULL


def main(arguments: list[str]) -> None:
    """Serve the worker at the other end of an inherited socket."""
    descriptor, worker, memory_bytes = map(int, arguments[:3])
    # However the worker ends, and even where this process is stopped or deep in LLVM then.
    end_with_parent(worker)
    for number in (signal.SIGINT, signal.SIGTERM):  # of all the process group; the worker decides when this ends
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    start_log(arguments[3], "compiler")
    serve(BlockingChannel(socket.socket(fileno=descriptor), compiler_pb2.Compile))


if __name__ == "__main__":
    main(sys.argv[1:])
