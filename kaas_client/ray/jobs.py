"""What an executor's engine is given to run, and what it gives back."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import NamedTuple

from kaas_client.ray.objects import Loan
from kaas_core.errors import InternalError, KaasError
from kaasd.ipc.messages import SerializedRequest
from kaasd.scheduling import DEFAULT_GROUP, QueuedRequest

_log = logging.getLogger(__name__)


def forget_frames(error: BaseException) -> None:
    """Have an error not keep what the thread had in its hands that met it first: it may go on, with outputs that are lent."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__


class YourTurn:
    """What a call that waits is told instead of its outcome: that it may drive the device."""


YOUR_TURN = YourTurn()


@dataclass(frozen=True, slots=True)
class Job:
    """A request as it is to be run."""

    request: SerializedRequest
    keys: Mapping[str, str]
    """Object ids of inputs that others may share, and of outputs that stay on the device, by buffer name."""
    inputs: Mapping[str, memoryview]
    """Bytes of the other inputs, by buffer name."""
    values: Mapping[str, memoryview]
    """What is lent for this call, by object id; what is on the device needs not be."""
    outputs: Mapping[str, str]
    """Object ids of the outputs, by buffer name."""
    deadline: float = math.inf
    """By ``time.monotonic``."""
    task_id: str = ""
    """What it is known by when it comes again to another process."""
    max_losses: int = 0
    """Processes that it may cost before it is refused."""
    input_keys: Mapping[str, str] = field(default_factory=dict)
    """Object ids of those of ``inputs`` that are objects, by buffer name."""
    group: str = DEFAULT_GROUP
    """Who it is for."""
    priority: int = 0
    """Higher first, within the group."""


class Outputs(NamedTuple):
    """What a request has written."""

    contents: Mapping[str, memoryview]
    """By object id."""
    loan: Loan | None
    """To be held while the bytes are used, if there is one."""


@dataclass(eq=False)
class Pending:
    """A job, for who waits for it."""

    id: int
    job: Job
    suspect: bool
    """It was on the device when a process before this one ended: it runs alone."""
    leaves_device: Callable[[Pending], None]
    """Called when it needs the device no more, before who waits learns of it."""
    outcome: SimpleQueue[Outputs | Exception | YourTurn] = field(default_factory=SimpleQueue)
    """The last is the outcome."""
    is_answered: bool = False
    queued: QueuedRequest = field(init=False)
    _handed_over: bool = False
    _outputs: Outputs | None = None

    def __post_init__(self) -> None:
        job = self.job
        held = sum(map(len, job.inputs.values())) + sum(map(len, job.values.values()))
        function = job.request.digest
        self.queued = QueuedRequest(self, job.group, function, priority=job.priority, deadline=job.deadline, size_bytes=held)

    def receive(self, contents: Mapping[str, memoryview], loan: Loan | None) -> None:
        """Take the outputs, by their keys."""
        self._handed_over = True
        self.leaves_device(self)
        keys = self.job.keys
        outputs = Outputs({object_id: contents[keys.get(name, name)] for name, object_id in self.job.outputs.items()}, loan)
        if loan is None:
            self._outputs = outputs
        else:
            self._answer(outputs)  # and nothing here holds on to the loan

    def succeed(self) -> None:
        """Learn that all is done. Who waits is better woken now than before, where the rest does not wait for it."""
        if self._outputs is not None:
            self._answer(self._outputs)

    def fail(self, error: Exception) -> None:
        """Take what it failed with."""
        if not isinstance(error, KaasError):
            _log.error("request %s", self.job.request.digest.hex(), exc_info=error)
            error = InternalError("a defect of kaasd; the executor's log has the details")
        if self._handed_over:
            _log.error("request %s failed after its outputs were handed over: %s", self.job.request.digest.hex(), error)
            return
        self.leaves_device(self)
        self._answer(error)

    def _answer(self, outcome: Outputs | Exception) -> None:
        self.is_answered = True
        self.outcome.put(outcome)
