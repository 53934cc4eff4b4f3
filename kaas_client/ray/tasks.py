"""A request as a task of Ray: its outputs become values of their own, and its inputs come with each call."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import NamedTuple

from kaas.v1 import types_pb2
from kaas_client.ray.arrays import Form, name_of
from kaas_core.protobuf import request_from_proto, request_to_proto
from kaas_core.request import BufferSpec, Request
from kaas_core.uses import Use, buffer_uses
from kaas_core.violations import Violations, shown
from kaasd.ipc.messages import SerializedRequest
from kaasd.request.plan import SMALL_BYTES
from kaasd.scheduling import DEFAULT_GROUP

_HEAD_SIZE = struct.Struct("<I")
INLINE_BYTES = 96 << 10
"""Of small inputs that travel with a call, in all: Ray would put more than 100 KiB into its object store."""


class TaskCall(NamedTuple):
    """One call of a task. The values of its inputs travel beside it, in this order, but for those that are inline."""

    digest: bytes
    """Of the task."""
    given: Sequence[tuple[str, str]]
    """Buffer and object id of each value beside it; the id is empty where it is no object."""
    inline: Sequence[tuple[str, int, str]] = ()
    """Buffer, size and object id of each value that travels with it, one behind the other."""
    constants: Sequence[tuple[str, str]] = ()
    """Buffer and object id of each object that is there, and may be on the device already: only its reference travels, with
    the call. They come before those of ``awaited``."""
    awaited: Sequence[tuple[str, str]] = ()
    """The same for objects that may not be there yet, in calls that do not wait for ever."""
    deadline_s: float = 0.0
    """Since the epoch; 0 for none."""
    max_retries: int = 0
    """How often it may run again that was on the device when an executor ended."""
    group: str = DEFAULT_GROUP
    priority: int = 0

    def to_bytes(self, values: Iterable[memoryview] = ()) -> bytes:
        """Return it with its inline values, as Ray passes it on fastest: bytes need no pickling there.

        An array that is pickled took 100 microseconds more from end to end.
        """
        head = pickle.dumps(tuple(self), pickle.HIGHEST_PROTOCOL)
        return b"".join((_HEAD_SIZE.pack(len(head)), head, *values))

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple[TaskCall, dict[str, memoryview]]:
        """Return what ``to_bytes`` wrote: the call, and its inline values by buffer name, where they lie."""
        view = memoryview(data)
        start = _HEAD_SIZE.size + _HEAD_SIZE.unpack_from(data)[0]
        call = cls(*pickle.loads(view[_HEAD_SIZE.size : start]))
        values = {}
        for name, size_bytes, _ in call.inline:
            values[name] = view[start : start + size_bytes]
            start += size_bytes
        return call, values


@dataclass(frozen=True, slots=True)
class Task:
    """A request as executors run it. What it returns is stored, and nothing else; keys and values come with each call."""

    serialized: SerializedRequest
    outputs: tuple[BufferSpec, ...]
    """What it returns, in order."""
    forms: tuple[Form, ...]
    """Of these."""
    kept: tuple[int, ...]
    """Indices of those that stay on the device, where they may be read again."""
    buffers: Mapping[str, BufferSpec]
    shareable: frozenset[str]
    """Inputs that no kernel writes: one copy of an object on the device serves all that read it."""

    def names_of(self, results: Mapping[str, str]) -> dict[str, str]:
        """Return by buffer name what those results are known by on the device that stay there, whose object ids these are."""
        return {spec.name: name_of(results[spec.name], spec) for spec in map(self.outputs.__getitem__, self.kept)}

    @classmethod
    def of(cls, request: Request, returns: Sequence[str] | None = None) -> Task:
        """Return the task of a valid request that returns these buffers.

        None stands for all that a kernel writes, in the order of their first writes, temporary uses aside. Raises
        ``InvalidRequestError``.
        """
        uses = buffer_uses(request)
        if returns is None:
            returns = outputs_of(uses)
        _check_returns(request, returns, uses)
        buffers = {spec.name: spec for spec in request.buffers if spec.name in uses}
        order = [*returns, *(name for name in buffers if name not in returns)]
        lowered = tuple(_lowered(buffers[name], uses[name], name in returns) for name in order)
        message = request_to_proto(replace(request, buffers=lowered))
        return cls._of_lowered(lowered, uses, message.SerializeToString(deterministic=True))

    @classmethod
    def from_content(cls, content: bytes) -> Task:
        """Return the task of which this is the serialised request."""
        request = request_from_proto(types_pb2.Request.FromString(content))
        return cls._of_lowered(request.buffers, buffer_uses(request), content)

    @classmethod
    def _of_lowered(cls, buffers: tuple[BufferSpec, ...], uses: Mapping[str, Use], content: bytes) -> Task:
        stored = [spec for spec in buffers if not spec.ephemeral]
        outputs = tuple(spec for spec in stored if uses[spec.name].writes)
        return cls(
            SerializedRequest(sha256(content).digest(), content),
            outputs,
            tuple(map(Form.of, outputs)),
            tuple(index for index, spec in enumerate(outputs) if spec.size_bytes > SMALL_BYTES),
            {spec.name: spec for spec in buffers},
            frozenset(spec.name for spec in stored if not uses[spec.name].writes),
        )


def outputs_of(uses: Mapping[str, Use]) -> list[str]:
    """Return the buffers that a kernel writes, in the order of their first writes, temporary uses aside."""
    first_writes = {name: use.first_write for name, use in uses.items() if use.first_write is not None}
    return sorted(first_writes, key=first_writes.__getitem__)


def _lowered(spec: BufferSpec, use: Use, returned: bool) -> BufferSpec:
    ephemeral = not returned and (spec.ephemeral or use.writes)
    return replace(spec, key="", offset_bytes=0 if ephemeral else spec.offset_bytes, ephemeral=ephemeral)


def _check_returns(request: Request, returns: Sequence[str], uses: Mapping[str, Use]) -> None:
    found = Violations()
    index_of = {spec.name: index for index, spec in enumerate(request.buffers)}
    if not returns:
        found.add("returns", "at least one buffer is to be returned: a task is run for its results")
    for position, name in enumerate(returns):
        if name not in uses or not uses[name].writes:
            found.add(f"returns[{position}]", f"no kernel writes a buffer {shown(name)}")
        elif name in returns[:position]:
            found.add(f"returns[{position}]", f"buffer {shown(name)} is named twice")
        elif request.buffers[index_of[name]].offset_bytes:
            found.add(
                f"buffers[{index_of[name]}].offset",
                f"buffer {shown(name)} is returned, as a value of its own: it cannot be a range of another",
            )
    found.raise_if_any()
