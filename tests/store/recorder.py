"""Records what a process does to files: each write, each sync, and what it says, in the order in which they were done.

Run as ``python -m tests.store.recorder LOG FOLDER COMMAND…``: the command runs as a child whose system calls are traced, which
needs no privileges. LOG gets a pickled list of what it did to files in FOLDER.
"""

from __future__ import annotations

import os
import pickle
import stat
import struct
import sys
from pathlib import Path
from typing import NamedTuple

from ptrace.debugger import NewProcessEvent, ProcessExit, ProcessSignal, PtraceDebugger, PtraceProcess
from ptrace.debugger.child import createChild
from ptrace.func_call import FunctionCallOptions
from ptrace.syscall import PtraceSyscall


class Write(NamedTuple):
    """Bytes were written to a file."""

    inode: int
    offset: int
    data: bytes
    synced: bool
    """The call returned when they, and no others, were on the disk."""


class Extend(NamedTuple):
    """A file became longer, by zeros."""

    inode: int
    size: int


class Sync(NamedTuple):
    """All that was written to a file, or changed in a directory, is on the disk."""

    inode: int


class Link(NamedTuple):
    """A file got another name, which is in this directory."""

    directory: int
    path: str


class Said(NamedTuple):
    """The process wrote to its standard output."""

    text: str


Event = Write | Extend | Sync | Link | Said

_IOVEC = struct.Struct("@PN")
_WRITES = {"write", "writev", "pwrite64", "pwritev", "pwritev2"}
_REFUSED = {"msync", "sync_file_range", "io_uring_enter", "sendfile", "copy_file_range", "rename", "renameat", "renameat2"}
"""What this cannot record, and nobody needs yet."""
_KNOWN = _WRITES | _REFUSED | {"ftruncate", "fallocate", "fsync", "fdatasync", "link", "linkat"}


class Recorder:
    """The events of one process and its threads."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.events: list[Event] = []

    def begun(self, process: PtraceProcess, call: PtraceSyscall) -> Event | None:
        """A call is about to be done; return what will have happened then."""
        values = [argument.value for argument in call.arguments]
        if call.name in ("link", "linkat"):
            path = process.readCString(values[3 if call.name == "linkat" else 1], 4096)[0].decode()
            return Link(Path(path).parent.stat().st_ino, path)
        if call.name in _REFUSED:
            raise NotImplementedError(call.name)
        descriptor, *rest = values
        if call.name == "write" and descriptor == 1:
            return Said(process.readBytes(rest[0], rest[1]).decode())
        file = Path(f"/proc/{process.pid}/fd/{descriptor}")
        if not str(file.readlink()).startswith(self._folder):
            return None
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) and not (stat.S_ISDIR(status.st_mode) and call.name in ("fsync", "fdatasync")):
            return None
        if call.name in ("fsync", "fdatasync"):
            return Sync(status.st_ino)
        if call.name == "ftruncate":
            assert rest[0] >= status.st_size
            return Extend(status.st_ino, rest[0])
        if call.name == "fallocate":
            assert rest[0] == 0
            return Extend(status.st_ino, max(status.st_size, rest[1] + rest[2]))
        lines = Path(f"/proc/{process.pid}/fdinfo/{descriptor}").read_text().splitlines()
        info = dict(line.split(":", 1) for line in lines)
        flags, position = int(info["flags"], 8), int(info["pos"])
        if call.name in ("pwrite64", "pwritev", "pwritev2"):
            position = rest[2]
        if call.name in ("write", "pwrite64"):
            data = process.readBytes(rest[0], rest[1])
        else:
            vectors = _IOVEC.iter_unpack(process.readBytes(rest[0], rest[1] * _IOVEC.size))
            data = b"".join(process.readBytes(address, size) for address, size in vectors)
        return Write(status.st_ino, position, data, bool(flags & os.O_DSYNC))

    def ended(self, event: Event, result: int) -> None:
        """A call has been done."""
        if result < 0:
            return
        if isinstance(event, Write):
            event = event._replace(data=event.data[:result])
        self.events.append(event)


def record(folder: str, command: list[str]) -> tuple[list[Event], int]:
    """Run a command, and return what it did and its exit status."""
    recorder, status = Recorder(folder), 0
    debugger = PtraceDebugger()
    debugger.traceClone()
    child = debugger.addProcess(createChild(command, no_stdout=False), is_attached=True)
    begun: dict[int, Event | None] = {}
    options = FunctionCallOptions()
    child.syscall()
    while debugger.list:
        try:
            event = debugger.waitSyscall()
        except ProcessExit as end:
            if end.process is child:
                status = end.exitcode if end.exitcode is not None else -(end.signum or 1)
            continue
        except ProcessSignal as caught:
            caught.process.syscall(caught.signum)
            continue
        except NewProcessEvent as new:
            new.process.syscall()
            new.process.parent.syscall()
            continue
        process = event.process
        state = process.syscall_state
        state.ignore_callback = lambda call: call.name not in _KNOWN
        entering = state.next_event == "enter"
        call = state.event(options)
        if call is not None:
            if entering:
                begun[process.pid] = recorder.begun(process, call)
            elif (seen := begun.pop(process.pid)) is not None:
                recorder.ended(seen, call.result)
        process.syscall()
    debugger.quit()
    return recorder.events, status


if __name__ == "__main__":
    events, status = record(*sys.argv[2:3], sys.argv[3:])
    # Bare tuples: here the types are those of ``__main__``.
    Path(sys.argv[1]).write_bytes(pickle.dumps([(type(event).__name__, *event) for event in events]))
    sys.exit(status)
