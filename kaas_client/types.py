"""What the calls of a client return. Sizes in bytes, times of day in UTC, durations in nanoseconds.

A state or kind that only a newer server knows is ``unknown (7)``, with its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from kaas_core import request as core
from kaas_core.array_form import ArrayForm, dtype_from_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the store, to bind a function's buffer to for one invocation."""

    name: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What the store knows of a key."""

    key: str
    size_bytes: int
    version: int
    """Grows with every commit of any value. 0 where the entry is damaged."""
    update_time: datetime
    dtype: str = ""
    """What its elements are, as who stored it said: NumPy's name, that of ml_dtypes, or the ``descr`` of a structured type as
    JSON. Empty: nothing was said."""
    shape: tuple[int, ...] = ()
    """With a ``dtype`` and no dimensions it is one element."""
    fortran_order: bool = False

    @property
    def damaged(self) -> bool:
        """Whether a list knows only its key, as the rest is damaged. Other damage shows when the value is read or checked."""
        return self.version == 0


class Value(bytes):
    """The bytes of a value, or of a range of it, and what the store knows of it. ``array()`` is the array that was stored."""

    entry: Entry
    """Of the whole value."""

    @classmethod
    def of(cls, content: bytes, entry: Entry) -> Value:
        """Return the bytes as a value."""
        value = cls(content)
        value.entry = entry
        return value

    @property
    def form(self) -> ArrayForm | None:
        """What it is as an array, where it is the whole value, and whoever stored it said so."""
        entry = self.entry
        if not entry.dtype or len(self) != entry.size_bytes:
            return None
        return ArrayForm(entry.dtype, entry.shape, entry.fortran_order)

    def array(self, dtype: DTypeLike | None = None) -> np.ndarray[Any, np.dtype[Any]]:
        """Return a read-only array that shares the bytes: one-dimensional and of ``dtype``, or what was stored.

        Raises ``TypeError`` where nothing says what it is, or where this is only a range of it.
        """
        if dtype is None and self.form is None:
            why = "this is only a range of it" if self.entry.dtype else "it was stored without a dtype"
            raise TypeError(f"nothing says what array key {self.entry.key!r} holds: {why}; give array(…) a dtype")
        return _array(f"key {self.entry.key!r}", self, self.form, dtype)


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went."""

    queue_ns: int
    """Waiting for the device."""
    plan_ns: int
    """Planning and loading libraries."""
    load_ns: int
    """Bringing inputs to the device."""
    run_ns: int
    """Launching and running the kernels."""
    commit_ns: int
    """Bringing outputs back and committing them."""
    total_ns: int
    """From the request's arrival at the server to its reply."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time in a request that was traced."""

    kind: str
    """``stage``, ``kernel``, ``copy_to_device``, ``zero`` or ``copy_to_host``."""
    name: str
    """Of a stage, a kernel, or a buffer.

    The stage ``request`` is all of it; ``queue``, ``plan``, ``load``, ``run`` and ``commit`` are those of ``Timing``. Within
    ``run`` are ``launch``, the host handing the work to the device, and ``gpu``, the device doing it; these two may overlap.
    """
    start_ns: int
    """Since the request's arrival at the server."""
    duration_ns: int
    stream: str = ""
    """Of the device; empty for a stage. On one stream no span overlaps another."""
    kernel_index: int | None = None
    """In the request, for a kernel."""
    iteration: int | None = None
    """From 0, for a kernel."""
    grid: tuple[int, int, int] | None = None
    block: tuple[int, int, int] | None = None
    size_bytes: int | None = None
    """What was copied or zeroed."""

    @property
    def end_ns(self) -> int:
        """Since the request's arrival."""
        return self.start_ns + self.duration_ns


@dataclass(frozen=True, slots=True)
class Trace:
    """What a request did, and when. ``kaas_client.chrome_trace`` makes a file of it that browsers show."""

    spans: tuple[Span, ...]
    """In no particular order."""
    launches_left_out: int
    """Launches without a span: those beyond the first 10,000."""
    notes: tuple[str, ...]
    """Remarks on the trace, for people."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a request ran. ``result["c"]`` is the bytes of a returned buffer."""

    outputs: Mapping[str, bytes]
    """The requested buffers, by name."""
    versions: Mapping[str, int]
    """The new version of every key that was written."""
    device: str
    """The device that ran it."""
    timing: Timing
    printed: str = ""
    """What device code printed; only the emulated device reports it."""
    trace: Trace | None = None
    """If it was requested."""
    attempts: int = 1
    """How often it was tried, by this client and by workers together; 1 where nothing went wrong."""
    outputs_dropped: bool = False
    """Only from a stream, where a ``request_id`` came again: the first reply was too large to be kept; outputs are missing."""
    group: str = ""
    """Whom it was for."""
    placement: str = "unspecified"
    """What it needed was on its device (``resident``), was brought there (``loaded``), or was on another one too, which was busy
    for longer than bringing it takes (``replicated``); ``unspecified`` where it needed nothing that stays on a device."""
    request: core.Request | None = field(default=None, repr=False, compare=False)
    """What ran, where the caller knew: it says what the buffers are."""

    def __getitem__(self, buffer: str) -> bytes:
        """Return a buffer's bytes. Raises ``KeyError`` for one that was not requested."""
        return self.outputs[buffer]

    def array(self, buffer: str, dtype: DTypeLike | None = None) -> np.ndarray[Any, np.dtype[Any]]:
        """Return a buffer as a read-only array that shares its bytes: one-dimensional and of ``dtype``, or as its request says.

        Raises ``KeyError`` for a buffer that was not requested, ``TypeError`` where nothing says what it is.
        """
        content = self.outputs[buffer]
        specs = () if self.request is None else self.request.buffers
        form = next((spec.form for spec in specs if spec.name == buffer), None)
        if form is None and dtype is None:
            raise TypeError(f"nothing says what buffer {buffer!r} is: give array(…) a dtype, or the buffer in its request")
        return _array(f"buffer {buffer!r}", content, form, dtype)


def _array(what: str, content: bytes, form: ArrayForm | None, dtype: DTypeLike | None) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a read-only array of bytes: of ``dtype``, or of the form, one of which is given. Raises ``TypeError``."""
    import numpy as np

    if dtype is not None or form is None:
        return np.frombuffer(content, dtype)
    order: Literal["C", "F"] = "F" if form.fortran_order else "C"
    try:
        known = dtype_from_text(form.dtype)
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from None
    return np.ndarray(form.shape, known, content, order=order)


class Arrays(Mapping[str, "np.ndarray[Any, np.dtype[Any]]"]):
    """What a bound function wrote, by buffer: read-only arrays that share the bytes of ``result``."""

    def __init__(self, result: Result) -> None:
        self.result = result
        """How it ran."""

    def __getitem__(self, buffer: str) -> np.ndarray[Any, np.dtype[Any]]:
        """As ``Result.array``."""
        return self.result.array(buffer)

    def __iter__(self) -> Iterator[str]:
        return iter(self.result.outputs)

    def __len__(self) -> int:
        return len(self.result.outputs)

    def __repr__(self) -> str:
        return f"Arrays({', '.join(self)})"


@dataclass(frozen=True, slots=True)
class Library:
    """An uploaded library."""

    id: str
    """``sha256:`` and 64 hex digits; what a ``Kernel`` takes as its library."""
    file_name: str
    size_bytes: int
    kind: str
    """``ptx``, ``cubin``, ``fatbin``, ``shared_object`` or ``wrapper``."""
    create_time: datetime
    damaged: bool = False
    """Only its id is known then."""


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """One entry point of a library."""

    name: str
    parameter_size_bytes: tuple[int, ...]
    """Of each parameter, in order. Empty for a function of host code: it declares none."""
    static_shared_memory_bytes: int
    max_threads_per_block: int
    parameter_alignment_bytes: tuple[int, ...] = ()
    """What each parameter's place is a multiple of. Empty where the server knows machine code alone, as the next one."""
    parameter_names: tuple[str, ...] = ()
    required_block: tuple[int, int, int] | None = None
    """The only size of block that it takes; None: any."""
    cluster: tuple[int, int, int] | None = None
    """The cluster that it is compiled for; None: any that is given, or none."""


@dataclass(frozen=True, slots=True)
class LibraryInspection:
    """What a library holds."""

    id: str
    kind: str
    kernels: tuple[KernelInfo, ...]
    device: str
    """The device that inspected it."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server's version, addresses and settings."""

    version: str
    start_time: datetime
    addresses: tuple[str, ...]
    max_message_bytes: int
    store_limit_bytes: int
    durability: str
    """``full``, ``meta`` or ``none``."""
    draining: bool
    store_id: str
    """128 random bits in hexadecimal, made with the store; empty where the server does not tell."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device and the state of its worker."""

    name: str
    model: str
    compute_capability: str
    memory_bytes: int
    memory_used_bytes: int
    """What kaasd uses of it."""
    state: str
    """``starting``, ``ready``, ``restarting``, ``stopped``, ``draining`` or ``lost``: see ``WorkerState`` in the protocol."""
    worker_pid: int
    """0 where there is no worker."""
    restarts: int
    warp_size: int
    max_threads_per_block: int
    max_shared_memory_bytes: int
    max_block: tuple[int, int, int]
    max_grid: tuple[int, int, int]
    multiprocessors: int
    max_ptx_version: int
    """87 for 8.7; 0 where the server does not tell."""
    targets: tuple[str, ...]
    """Architectures whose PTX it takes, as ``sm_80``."""


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """A request that waits for its device or runs on it."""

    id: str
    function: str
    """What it invokes; empty where the request was submitted itself."""
    device: str
    state: str
    """``queued``, ``running`` or ``committing``."""
    age_ns: int
    """Since it came."""
    input_bytes: int
    """Size of the inputs that came with it."""
    group: str = ""
    """Whom it is for."""


@dataclass(frozen=True, slots=True)
class QuarantinedRequest:
    """A request that is refused, because it has cost several workers."""

    id: str
    """64 hex digits; ``request`` in the metadata of ``QuarantinedError``."""
    workers: int
    """How many it has cost."""
    last_fault: str
    """How the last of them was lost."""
    last_time: datetime
    """When the last of them was lost."""
    functions: tuple[str, ...]
    """Functions that have this request, at most 10. Empty where it was only submitted itself."""


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """Counters of one device since the server started, and current gauges."""

    device: str
    requests_succeeded: int
    requests_failed: int
    kernels_launched: int
    queued: int
    running: int
    run_time_ns: int
    """Spent in kernels."""


@dataclass(frozen=True, slots=True)
class Group:
    """What a group is granted. Of a number that is a limit, 0 is none."""

    name: str
    """1 to 64 of A-Z a-z 0-9 . _ -"""
    share: float = 1.0
    """Its part of the devices, beside the shares of the other groups that have requests: more is more."""
    priority: int = 0
    """Higher goes first, by a bounded advance."""
    max_running: int = 0
    """Requests at devices; more wait."""
    max_queued: int = 0
    """Requests that wait; more are refused."""
    max_queued_bytes: int = 0
    """Of inputs that came with requests and wait with them."""
    max_device_memory_bytes: int = 0
    """Of each device: what its requests use there, and what they have brought and left."""
    max_stored_bytes: int = 0
    """Of what it has put in the store."""
    reserved_multiprocessors: int = 0
    """Of each device, that are its own."""
    max_region_bytes: int = 0
    """Of its open regions; 0 asks for the default, 4 GiB."""
    max_keys: int = 0
    """That it has put."""


@dataclass(frozen=True, slots=True)
class GroupUse:
    """What a group uses: current gauges, and counters since the server started."""

    queued: int
    queued_bytes: int
    """Of inputs that wait."""
    running: int
    device_time_ns: int
    """Of the requests that have ended."""
    started: int
    """Requests that were sent to a device."""
    resident: int
    """Those of them that found there all that they need."""
    queue_time_ns: int
    """That requests have waited, in sum."""
    stored_bytes: int
    keys: int
    """That it has put."""
    share_wanted: float
    """Its part of the shares of all groups that have requests now."""
    share_got: float
    """Its part of the device time of all groups, in the last 10 seconds or so."""


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A group, and what it uses."""

    group: Group
    use: GroupUse
    fixed: bool
    """It is in the server's settings file, and can only be changed there."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters of a server since it started, and current gauges."""

    uptime_ns: int
    devices: tuple[DeviceStats, ...]
    store_keys: int
    store_used_bytes: int
    store_limit_bytes: int
    functions: int
    failures_by_reason: Mapping[str, int]
    groups: Mapping[str, GroupUse] = field(default_factory=dict)
    """By name."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction has changed of a store's file."""

    file_before_bytes: int
    file_after_bytes: int
    """Includes holes, which take up no disk."""
    disk_before_bytes: int
    """What the disk held of it."""
    disk_after_bytes: int
    only_end: bool
    """The file system cannot give back blocks from within a file: at most its end was cut off."""


@dataclass(frozen=True, slots=True)
class DamagedEntry:
    """Something stored that cannot be read as it was written."""

    kind: str
    """``value``, ``library``, ``function``, ``reply`` (of a request with an id), or ``store`` for the store itself."""
    key: str
    """Or id, or name; empty for the store itself."""
    problem: str


@dataclass(frozen=True, slots=True)
class StoreCheck:
    """What a check of a store has found."""

    entries: int
    """Values, libraries, functions and replies that it looked at."""
    size_bytes: int
    """Of all of them."""
    damaged: tuple[DamagedEntry, ...]
    """Empty where all is well."""
