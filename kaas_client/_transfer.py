"""Sends and receives large values in pieces, without a second copy of the whole. Makes no calls itself."""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

from kaas.v1.admin_pb2 import BackupStoreResponse, CheckProgress, CheckStoreResponse
from kaas.v1.kv_pb2 import Entry, GetResponse
from kaas_client import _convert, errors
from kaas_client.types import DamagedEntry, StoreCheck, Value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

M = TypeVar("M")

CHUNK_BYTES = 1 << 20
"""Measured best on gRPC in Python: larger messages are slower and hold up other calls."""
SPOOL_BYTES = 64 << 20
"""How much of a source of unknown size is kept in memory until its size is known."""

_ADDRESSES = frozenset("OPX&")
"""Formats of the buffer protocol for objects, and for pointers to anything."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, from any thread."""


@runtime_checkable
class Readable(Protocol):
    """A binary file to read from."""

    def read(self, size: int = -1, /) -> bytes: ...


@runtime_checkable
class Seekable(Protocol):
    """A binary file that can tell its position and its length."""

    def tell(self) -> int: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...


@runtime_checkable
class Writable(Protocol):
    """A binary file to write to."""

    def write(self, data: bytes, /) -> int: ...


Bytes: TypeAlias = Any
"""Anything with the buffer protocol: bytes, bytearray, memoryview, NumPy and other arrays."""
Data: TypeAlias = "Bytes | os.PathLike[str] | Readable | Iterable[Bytes]"
"""What can be stored: a buffer, a path, a binary file, or an iterable of buffers."""


def flat_view(data: Bytes) -> memoryview:
    """Return the bytes of an array or other buffer in C order; a copy only where they are not contiguous.

    Raises ``TypeError`` for what is not a buffer, and for items that are not plain bytes: objects, text of any length, addresses.
    """
    if _is_array(data):
        data = _plain(data)
    try:
        view = memoryview(data)
    except (TypeError, ValueError):
        advice = "; send numpy.asarray(...) of it" if hasattr(data, "__array__") else ""
        raise TypeError(f"expected bytes or an array, not {type(data).__name__}{advice}") from None
    if not _ADDRESSES.isdisjoint(re.sub(":[^:]*:", "", view.format)):  # without the names of fields
        raise TypeError(
            f"the items of this {type(data).__name__} are addresses, which mean nothing elsewhere; send what they point at"
        )
    # PickleBuffer flattens any element type; memoryview.cast knows only those of struct.
    return PickleBuffer(view).raw() if view.c_contiguous else memoryview(view.tobytes())


def is_buffer(data: object) -> bool:
    """Return whether ``data`` is an array of NumPy, or has the buffer protocol."""
    if _is_array(data):
        return True
    try:
        memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def says_its_form(data: object) -> bool:
    """Return whether ``data`` is an array of NumPy, or of another package, on whatever device."""
    if isinstance(data, bytes | bytearray | memoryview | str):
        return False
    return _is_array(data) or _is_scalar(data) or is_foreign_array(data)


def is_foreign_array(data: object) -> bool:
    """Return whether ``data`` is an array of another package than NumPy that can be taken from it, from a GPU too."""
    return (hasattr(data, "__dlpack__") or hasattr(data, "__cuda_array_interface__")) and not _is_array(data)


def _is_array(data: object) -> bool:
    numpy = sys.modules.get("numpy")  # Whoever has an array has imported it.
    return numpy is not None and isinstance(data, numpy.ndarray)


def _is_scalar(data: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(data, numpy.generic)


def _plain(array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return an array as one whose bytes can be sent: of its own type, or of bytes where the buffer protocol lacks that type."""
    import numpy as np

    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("a masked array would lose its mask; send array.filled(value), or array.data and array.mask apart")
    if array.dtype.hasobject or array.dtype.kind == "T":
        raise TypeError(
            f"the items of an array of {array.dtype} are not plain bytes; give them a fixed size with array.astype(...)"
        )
    if array.dtype.isbuiltin == 1 and array.dtype.kind not in "mM":
        return array
    # Dates and times, structures that hold them, and types of other packages such as ml_dtypes' bfloat16.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class Receiver(Protocol):
    """Takes the messages of a stream that answers a call."""

    @property
    def blocking(self) -> bool:
        """Whether feeding it may wait for a file."""

    def feed(self, message: Any) -> None:
        """Take the next message."""


@dataclass(frozen=True, slots=True)
class Source:
    """Data about to be sent."""

    size_bytes: int
    chunks: Iterable[bytes]
    """Of at most ``CHUNK_BYTES``."""
    blocking: bool
    """Taking a chunk may wait for a file or a caller's iterator."""


@contextmanager
def open_source(data: Data, size_bytes: int | None = None) -> Iterator[Source]:
    """Open what can be stored.

    A stream whose size is unknown is first spooled, to memory and then to a temporary file, because the size is sent before the
    data; ``size_bytes`` avoids that. Raises ``TypeError`` for anything else, ``OSError`` for a file that cannot be read.
    """
    if isinstance(data, str):
        raise TypeError("cannot store a str: encode text, or give a pathlib.Path for a file")
    if isinstance(data, io.TextIOBase):
        raise TypeError("a file must be open in binary mode")
    with ExitStack() as stack:
        if isinstance(data, os.PathLike):
            data = stack.enter_context(Path(data).open("rb"))
        # Buffers before files: an mmap is both, and as a file it would have a position.
        if is_buffer(data):
            view = flat_view(data)
            yield Source(len(view), _slices(view), blocking=False)
            return
        pieces: Iterator[bytes]
        if isinstance(data, Readable):
            if size_bytes is None:
                size_bytes = _remaining_bytes(data)
            pieces = _reads(data)
        elif isinstance(data, Iterable):
            pieces = _recut(data)
        else:
            raise TypeError(f"expected bytes, an array, a path, a binary file or an iterable of those, not {type(data).__name__}")
        if size_bytes is None:
            spool = stack.enter_context(tempfile.SpooledTemporaryFile(SPOOL_BYTES))
            spool.writelines(pieces)
            size_bytes = spool.tell()
            spool.seek(0)
            pieces = _reads(spool)
        yield Source(size_bytes, pieces, blocking=True)


class Upload(Generic[M]):
    """The messages of an upload: a header, then chunks.

    A failure of the source ends them early and is kept in ``error``: gRPC would only log it, and a server stores nothing of an
    upload that ended early.
    """

    def __init__(self, source: Source, header: M, wrap: Callable[[bytes], M], progress: Progress | None) -> None:
        self.error: Exception | None = None
        self.is_begun = False
        """Something of the source was taken, which cannot be taken again."""
        self.blocking = source.blocking
        self._source = source
        self._header = header
        self._wrap = wrap
        self._progress = progress

    def __iter__(self) -> Iterator[M]:
        yield self._header
        done = 0
        try:
            self.is_begun = True
            for chunk in self._source.chunks:
                yield self._wrap(chunk)
                done += len(chunk)
                if self._progress:
                    self._progress(done, self._source.size_bytes)
        except Exception as error:
            self.error = error


class Download:
    """Receives a value: takes the messages of a ``Get`` in order, and makes of them what the caller asked for."""

    def __init__(
        self,
        dtype: DTypeLike | None,
        offset_bytes: int,
        size_bytes: int | None,
        into: Bytes | Writable | None,
        progress: Progress | None,
    ) -> None:
        if dtype is not None and into is not None:
            raise ValueError("dtype and into cannot be given together: an array to fill already has a type")
        self._dtype = _numpy_dtype(dtype) if dtype is not None else None
        self._offset_bytes = offset_bytes
        self._wanted_bytes = size_bytes
        self._target = _writable_view(into) if is_buffer(into) else None
        self._file = into if self._target is None and isinstance(into, Writable) else None
        if into is not None and self._target is None and self._file is None:
            raise TypeError(f"into must be a writable buffer or a binary file, not {type(into).__name__}")
        self._progress = progress
        self._total_bytes: int | None = None
        self._done_bytes = 0
        self._chunks: list[bytes] = []
        self._value: Value | None = None
        self.entry: Entry | None = None
        """Of the whole value, once it is known."""

    @property
    def blocking(self) -> bool:
        """Whether feeding it may wait for a file."""
        return self._file is not None

    def feed(self, message: GetResponse) -> None:
        """Take the next message. Raises ``ValueError`` where the value does not fit its target."""
        if message.WhichOneof("part") == "entry":
            self.entry = message.entry
            rest = message.entry.size_bytes - self._offset_bytes
            self._begin(rest if self._wanted_bytes is None else self._wanted_bytes)
            return
        chunk = message.chunk
        if self._file is not None:
            self._file.write(chunk)
        elif self._target is not None:
            self._target[self._done_bytes : self._done_bytes + len(chunk)] = chunk
        else:
            self._chunks.append(chunk)
        self._done_bytes += len(chunk)
        if self._progress and self._total_bytes is not None:
            self._progress(self._done_bytes, self._total_bytes)

    def result(self) -> Value | np.ndarray[Any, np.dtype[Any]] | int:
        """Return the value, or the array, or how many bytes were written to the caller's target."""
        if self._done_bytes != self._total_bytes:
            raise errors.InternalError(f"the server sent {self._done_bytes} of {self._total_bytes} bytes")
        if self._dtype is not None:
            import numpy as np

            assert self._target is not None
            return np.frombuffer(self._target, self._dtype)
        if self._target is not None or self._file is not None:
            return self._done_bytes
        if self._value is None:
            assert self.entry is not None
            content = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            self._value = Value.of(content, _convert.entry(self.entry))
        return self._value

    def _begin(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        if self._dtype is not None:
            if total_bytes % self._dtype.itemsize:
                raise ValueError(f"{total_bytes} bytes are not a whole number of {self._dtype} elements")
            self._target = memoryview(bytearray(total_bytes))
        elif self._target is not None and total_bytes > len(self._target):
            raise ValueError(f"{total_bytes} bytes do not fit into a buffer of {len(self._target)}")


class BackupDownload:
    """Receives a backup: writes the messages of a ``BackupStore``, in order, to a file."""

    blocking = True

    def __init__(self, file: Writable, progress: Progress | None) -> None:
        self._file = file
        self._progress = progress
        self._total_bytes: int | None = None
        self._done_bytes = 0

    def feed(self, message: BackupStoreResponse) -> None:
        """Take the next message."""
        if message.WhichOneof("part") == "header":
            self._total_bytes = message.header.size_bytes
            return
        self._file.write(message.chunk)
        self._done_bytes += len(message.chunk)
        if self._progress and self._total_bytes is not None:
            self._progress(self._done_bytes, self._total_bytes)

    def result(self) -> int:
        """Return how many bytes were written."""
        if self._done_bytes != self._total_bytes:
            raise errors.InternalError(f"the server sent {self._done_bytes} of {self._total_bytes} bytes")
        return self._done_bytes


class CheckAnswers:
    """Receives what a ``CheckStore`` finds."""

    blocking = False

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._damaged: list[DamagedEntry] = []
        self._last: CheckProgress | None = None

    def feed(self, message: CheckStoreResponse) -> None:
        """Take the next message."""
        if message.WhichOneof("part") == "damaged":
            self._damaged.append(DamagedEntry(message.damaged.kind, message.damaged.key, message.damaged.problem))
            return
        self._last = message.progress
        if self._progress:
            done = self._last.used_bytes if self._last.finished else min(self._last.checked_bytes, self._last.used_bytes)
            self._progress(done, self._last.used_bytes)

    def result(self) -> StoreCheck:
        """Return what was found."""
        if self._last is None or not self._last.finished:
            raise errors.InternalError("the server has not looked at all of its store")
        return StoreCheck(self._last.entries, self._last.checked_bytes, tuple(self._damaged))


def _numpy_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    import numpy as np

    return np.dtype(dtype)


def _writable_view(into: Bytes) -> memoryview:
    view = memoryview(into)
    if view.readonly or not view.c_contiguous:
        raise ValueError("into must be writable and contiguous in C order")
    return PickleBuffer(view).raw()


def _remaining_bytes(file: Readable) -> int | None:
    """Return how much of a file is left to read; None where that is unknown, as for a pipe."""
    if not isinstance(file, Seekable):
        return None
    try:
        position = file.tell()
        end = file.seek(0, io.SEEK_END)
        file.seek(position)
    except OSError:
        return None
    return max(0, end - position)


def _reads(file: Readable) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _slices(view: memoryview) -> Iterator[bytes]:
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


def _recut(pieces: Iterable[Bytes]) -> Iterator[bytes]:
    """Yield the same bytes in chunks of ``CHUNK_BYTES``: pieces may be a few bytes each, or very large."""
    rest = bytearray()
    for piece in pieces:
        view = flat_view(piece)
        for start in range(0, len(view), CHUNK_BYTES):
            rest += view[start : start + CHUNK_BYTES]
            if len(rest) >= CHUNK_BYTES:
                yield bytes(rest[:CHUNK_BYTES])
                del rest[:CHUNK_BYTES]
    if rest:
        yield bytes(rest)
