"""Jobs of all kinds on one executor, in any order: none hangs or answers wrongly, and none leaves anything in use behind."""

from __future__ import annotations

import math
import random
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from kaas_core.errors import CancelledError, GroupLimitError, KaasError, OutOfDeviceMemoryError
from kaasd.devices.base import Device
from kaasd.libraries.registry import Libraries, describe_library
from kaasd.store.lmdb_store import LmdbStore
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Invocation, Job, Result, execute
from kaasd.worker.executor import Executor
from tests.conformance.launching import library
from tests.conformance.test_executor import LARGE, Bench, numbers

VALUE = 4 * LARGE
KEYS = 8
AT_ONCE = 9
STEPS = 400
MAX_POLLS = 1000
"""Of each job, once no more come."""
LIMITS = [0, 1, 3 * VALUE, 4 * VALUE, 6 * VALUE]
INLINE = numbers(50, LARGE)


class Begun(NamedTuple):
    job: Job[Result]
    cancellation: Cancellation
    key_a: str
    """Empty: its caller brings it."""
    key_b: str
    versions: dict[str, int]
    """How often each value had been put when it began."""


class Mixture:
    """Begins, polls, cancels and closes jobs as ``random`` says, and puts values and sets limits meanwhile."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self._bench = bench
        self._random = random.Random(seed)
        self._values = {f"v{index}": [numbers(index, LARGE)] for index in range(KEYS)}
        for key, (value,) in self._values.items():
            bench.put(key, value)
        self._limits = {group: self._random.choice(LIMITS) for group in "abcd"}
        self._jobs: list[Begun] = []

    def run(self) -> None:
        """Do all of it, until no job is left."""
        for step in range(STEPS):
            self._step(self._random.random(), step)
        polls = 0
        while self._jobs:
            for begun in list(self._jobs):
                begun.job.wait()
                self._poll(begun)
            polls += 1
            assert polls < MAX_POLLS, "some wait for ever"

    def _step(self, what: float, step: int) -> None:
        if what < 0.3 and len(self._jobs) < AT_ONCE:
            self._begin()
        elif what < 0.32:
            self._limits[self._random.choice("abcd")] = self._random.choice(LIMITS)
        elif what < 0.34:
            key, value = f"v{self._random.randrange(KEYS)}", numbers(100 + step, LARGE)
            self._values[key].append(value)
            self._bench.put(key, value)
        elif self._jobs:
            begun = self._random.choice(self._jobs)
            if what < 0.36:
                begun.cancellation.reason = CancelledError("the caller went away")
            elif what < 0.37:
                begun.job.close()
                self._jobs.remove(begun)
            else:
                self._poll(begun)

    def _begin(self) -> None:
        choose = self._random.choice
        cancellation, group, keys = Cancellation(), choose("abcd"), list(self._values)
        a, b = choose(["", *keys]), choose(keys)
        bound = {"b": b, "p": choose(["p0", "p1", "p2"])} | ({"a": a} if a else {})
        invocation = Invocation(
            self._bench.multiply(LARGE),
            bound,
            {} if a else {"a": INLINE.tobytes()},
            ["p"],
            cancellation,
            group=group,
            priority=choose([0, 0, 0, 3]),
            max_device_memory_bytes=self._limits[group],
        )
        versions = {key: len(values) - 1 for key, values in self._values.items()}
        self._jobs.append(Begun(execute(self._bench.executor, invocation), cancellation, a, b, versions))

    def _poll(self, begun: Begun) -> None:
        try:
            result = begun.job.poll()
        except KaasError as error:
            self._jobs.remove(begun)
            assert isinstance(error, CancelledError | GroupLimitError | OutOfDeviceMemoryError)
            assert (begun.cancellation.reason is not None) or not isinstance(error, CancelledError)
            return
        if result is not None:
            self._jobs.remove(begun)
            product = np.frombuffer(result.outputs["p"], np.uint32)
            first, second = self._readable(begun.key_a, begun), self._readable(begun.key_b, begun)
            assert any(np.array_equal(product, a * b) for a in first for b in second)

    def _readable(self, key: str, begun: Begun) -> list[Any]:
        return self._values[key][begun.versions[key] :] if key else [INLINE]


@pytest.mark.parametrize("seed", range(8))
def test_jobs_of_groups_with_limits(tmp_path: Path, device: Device, seed: int) -> None:
    with closing(LmdbStore(tmp_path / "store", limit_bytes=256 << 20)) as store:
        libraries = Libraries(store)
        libraries.put(describe_library(library("dot")), library("dot"))
        memory_limit_bytes, concurrency = [7, 10, 12, 20][seed % 4] * VALUE, [1, 2, 4, math.inf][seed // 2]
        with closing(
            Executor(
                device,
                store,
                libraries,
                memory_limit_bytes=memory_limit_bytes,
                keep_stored=bool(seed % 2),
                concurrency=concurrency,
            )
        ) as executor:
            Mixture(Bench(executor, store), seed).run()
            memory = executor.memory
            assert memory.in_use_bytes == 0
            assert [memory.in_use_of(group) for group in "abcd"] == [0] * 4
            assert len(executor.memory_turns) == 0
            assert executor.slots.has_free()
            kinds = {key[0] for key in memory.keys() if isinstance(key, tuple)}  # noqa: SIM118  (no mapping)
            assert kinds <= {"instance", "value"}
