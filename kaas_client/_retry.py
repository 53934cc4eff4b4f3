"""Which failed calls are made again, and when. Makes no calls itself."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from enum import Enum

from kaas_client import errors

_LEAST_JITTER, _MOST_JITTER = 0.8, 1.2
"""What a wait is multiplied by, as gRPC's own retry policy has it."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a call is made that fails with UNAVAILABLE, or because a queue or a group is full; times in seconds.

    The wait behind the n-th failure is ``initial_backoff * backoff_multiplier ** (n - 1)``, at most ``max_backoff``, give or take
    a fifth; and at least what the server asks for.
    """

    max_attempts: int = 4
    """The first one included."""
    initial_backoff: float = 0.05
    max_backoff: float = 1.0
    backoff_multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts}")
        if not 0 < self.initial_backoff <= self.max_backoff:
            raise ValueError("initial_backoff must be above 0, and at most max_backoff")
        if self.backoff_multiplier < 1:
            raise ValueError(f"backoff_multiplier must be at least 1, not {self.backoff_multiplier}")

    def wait(self, failures: int, error: errors.KaasError) -> float:
        """Return how long to wait behind so many failures, the last of which was ``error``."""
        backoff = self.initial_backoff
        for _ in range(failures - 1):
            if backoff >= self.max_backoff:
                break
            backoff *= self.backoff_multiplier
        return max(min(backoff, self.max_backoff) * random.uniform(_LEAST_JITTER, _MOST_JITTER), error.retry_after_s or 0.0)


class Repeat(Enum):
    """When a call may be made again."""

    ALWAYS = "always"
    """It changes nothing, or has its effect once for its ``request_id``."""
    REFUSED = "refused"
    """Where nothing was sent, or the server says that it could not begin: not where a connection was lost."""
    UNSENT = "unsent"
    """Where nothing was sent."""


class Tries:
    """The tries of one call."""

    def __init__(self, policy: RetryPolicy | None, repeat: Repeat, timeout: float | None, *, was_reached: bool) -> None:
        """``was_reached``: there was a server at this address before, so that it may come back."""
        self._policy = policy
        self._repeat = repeat
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self.was_reached = was_reached
        self.count = 1

    @property
    def timeout(self) -> float | None:
        """What is left of the call's timeout."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def again(self, error: errors.KaasError) -> float | None:
        """A try has failed. Return how long to wait before the next one; None where there is none."""
        policy = self._policy
        self.was_reached |= type(error) is not errors.ConnectionFailedError
        if policy is None or self.count >= policy.max_attempts or not self._may_repeat(error):
            return None
        wait = policy.wait(self.count, error)
        if (left := self.timeout) is not None and wait >= left:
            return None
        self.count += 1
        return wait

    def _may_repeat(self, error: errors.KaasError) -> bool:
        is_lost = isinstance(error, errors.ConnectionLostError)
        if isinstance(error, errors.ConnectionFailedError) and not is_lost:
            return self.was_reached  # Else nothing is there, as far as is known, and waiting would only hide it.
        if error.code != "UNAVAILABLE" and (error.code != "RESOURCE_EXHAUSTED" or error.retry_after_s is None):
            return False
        return self._repeat is Repeat.ALWAYS or (self._repeat is Repeat.REFUSED and not is_lost)


def new_request_id() -> str:
    """Return an id that no other call has, also of a forked process. Later ones are greater: a store has them side by side."""
    return f"{time.time_ns() >> 20:011x}{os.urandom(10).hex()}"
