"""A request as something to call: references to its outputs come back at once."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from kaas_client.ray.arrays import Bytes, bytes_of
from kaas_client.ray.placement import Placed
from kaas_client.ray.references import packed_with
from kaas_client.ray.session import Session
from kaas_client.ray.tasks import INLINE_BYTES, Task, TaskCall
from kaas_core.errors import InvalidArgumentError, InvalidRequestError, Violation
from kaas_core.request import BufferSpec, Request
from kaas_core.uses import buffer_uses
from kaasd.scheduling import DEFAULT_GROUP, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How calls are made."""

    returns: tuple[str, ...] | None = None
    """The buffers to return, in order; None: all that a kernel writes, temporary uses aside, in the order of first writes."""
    group: str = DEFAULT_GROUP
    """Who the calls are for."""
    priority: int = 0
    """Higher first, within the group."""
    timeout: float | None = None
    """Seconds from the call to its deadline."""
    max_retries: int = 3
    """How often a call is run again that was on the device when its executor ended; 0 has it fail as Ray says, also where it only
    waited."""
    executor: str | None = None
    """The name of the executor to run on; None: any."""

    def __post_init__(self) -> None:
        Group(self.group)  # raises where it cannot be one's name
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise InvalidArgumentError(f"timeout must be a number of seconds greater than 0, not {self.timeout!r}")
        if self.max_retries < 0:
            raise InvalidArgumentError(f"max_retries must be at least 0, not {self.max_retries}")


class RemoteFunction:
    """A request as a task of Ray; made by ``remote``."""

    def __init__(self, name: str, request: Request, options: Options | None = None) -> None:
        """``request`` names its libraries by content id. Raises ``InvalidRequestError``."""
        self.name = name
        self.request = request
        self._options = options or Options()
        self._task = Task.of(request, self._options.returns)
        uses = buffer_uses(request)
        self._inputs: Mapping[str, BufferSpec] = {
            spec.name: spec for spec in request.buffers if spec.name in uses and uses[spec.name].reads_first
        }
        self._zeros = {
            spec.name: np.zeros(spec.size_bytes, np.uint8)
            for spec in self._task.outputs
            if spec.name in self._inputs and self._inputs[spec.name].ephemeral
        }
        """What starts as zeros unless it is given, and is returned: for an executor it is a value like others."""
        self._session: Session | None = None
        self._methods: dict[tuple[str, str | None, bool], Any] = {}
        """Of the session's executors, by name, lane, and whether a call awaits inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The buffers that a call returns, in order."""
        return tuple(spec.name for spec in self._task.outputs)

    def __repr__(self) -> str:
        return f"<RemoteFunction {self.name}({', '.join(self._inputs)}) -> {', '.join(self.outputs)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self.name, self.request, self._options)

    def options(self, **changed: Any) -> RemoteFunction:
        """Return the function with other options, as ``Options`` names them.

        Raises ``TypeError`` for any other, ``InvalidArgumentError``, ``InvalidRequestError``.
        """
        if changed.get("returns") is not None:
            changed["returns"] = tuple(changed["returns"])
        return RemoteFunction(self.name, self.request, replace(self._options, **changed))

    def remote(self, /, **buffers: object) -> Any:
        """Run it: return a reference to its output, or a tuple of them where it has several.

        ``buffers`` are arrays, bytes, or references to such, which need not be ready. Raises ``InvalidRequestError`` where one is
        missing, not known or of another size.
        """
        self._check(buffers)
        buffers = {**self._zeros, **buffers}
        session = self._session
        if session is None:
            session = self._session = Session.current()
        session.publish(self._task)
        given: list[tuple[str, str]] = []
        values: list[object] = []
        inline: list[tuple[str, memoryview, str]] = []
        room = INLINE_BYTES
        constants: dict[tuple[str, str], ray.ObjectRef[Any]] = {}
        awaited: dict[tuple[str, str], ray.ObjectRef[Any]] = {}
        options = self._options
        for name, value in buffers.items():
            if not isinstance(value, ray.ObjectRef):
                content = self._bytes(name, value)
                if content.nbytes <= room:
                    room -= content.nbytes
                    inline.append((name, content.data, ""))
                else:
                    given.append((name, ""))
                    values.append(content)
                continue
            named = name, value.hex()
            spec = self._inputs[name]
            comes_again = spec.constant or (name in self._task.shareable and session.was_given(value))
            if comes_again and session.is_there(value):
                if spec.size_bytes <= room and (small := session.small_value(value, spec)) is not None:
                    room -= len(small)
                    inline.append((name, small, named[1]))
                else:
                    constants[named] = value
            elif options.timeout is not None and not session.is_there(value):
                awaited[named] = value
            else:
                given.append(named)
                values.append(value)
        deadline_s = 0.0 if options.timeout is None else time.time() + options.timeout
        call = TaskCall(
            self._task.serialized.digest,
            given,
            [(name, len(content), object_id) for name, content, object_id in inline],
            (*constants,),
            (*awaited,),
            deadline_s,
            options.max_retries,
            options.group,
            options.priority,
        )
        packed = packed_with(call.to_bytes(content for _, content, _ in inline), [*constants.values(), *awaited.values()])
        in_order = options.timeout is None and not options.priority
        placed = session.placer.choose(self._task, buffers, options.group, options.executor, in_order=in_order)
        references = self._method(placed, bool(awaited)).remote(packed, *values)
        if isinstance(references, ray.ObjectRef):
            session.placer.sent(self._task, placed, (references,))
            return references
        session.placer.sent(self._task, placed, references)
        return tuple(references)

    def _method(self, placed: Placed, awaits: bool) -> Any:
        """Return the method of an executor that is to be called: making one anew takes 10 microseconds."""
        key = placed.executor.name, placed.lane, awaits
        method = self._methods.get(key)
        if method is None:
            actor = placed.executor.actor
            method = actor.run_when_ready if awaits else actor.run
            # Executors count the retries: for Ray a call that only waited for the device was tried as well.
            method = self._methods[key] = method.options(
                name=self.name,
                num_returns=len(self._task.outputs),
                max_task_retries=-1 if self._options.max_retries else 0,
                concurrency_group=None if awaits else placed.lane,
            )
        return method

    def _check(self, buffers: Mapping[str, object]) -> None:
        bad = [
            Violation(f'inputs["{name}"]', "no kernel reads a buffer of this name first")
            for name in buffers
            if name not in self._inputs
        ]
        bad += [
            Violation(f'inputs["{name}"]', "is missing: the buffer is read first")
            for name, spec in self._inputs.items()
            if name not in buffers and not spec.ephemeral
        ]
        if bad:
            raise InvalidRequestError(bad)

    def _bytes(self, name: str, value: object) -> Bytes:
        spec = self._inputs[name]
        content = bytes_of(value, spec)
        if content.nbytes != spec.size_bytes:
            found = f"has {content.nbytes} bytes, but the buffer has {spec.size_bytes}"
            raise InvalidRequestError.at(f'inputs["{name}"]', found)
        return content
