"""Which executor calls go to: where their data are, unless others are busy there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import ray

import kaas_client.ray as kaas_ray
from kaas_client.errors import GroupNotFoundError, InvalidArgumentError
from kaas_client.ray import placement, policies, reports
from kaas_client.ray.cluster import ExecutorRef
from kaas_client.ray.placement import Placer
from kaas_client.ray.policies import Sharing
from kaas_client.ray.reports import Report
from kaas_client.ray.session import Session
from kaas_client.ray.tasks import Task
from tests.ray.conftest import wait_until
from tests.ray.support import ONE, ZERO, Words, cancel, product_request, scaled_request, spin_request, vectors, when

LARGE = 1 << 18
"""Words of a vector: 1 MiB."""
WITHIN_S = 60


class Handle:
    """Stands for an actor."""

    state = 2

    def _get_local_state(self) -> int:
        return self.state


class Seen:
    """Executors that say what they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
        self.refs = [ExecutorRef(name, Handle()) for name in names]
        self.reports: dict[str, Report] = {}
        self.now_s = 1000.0
        monkeypatch.setattr(policies, "read", Sharing)
        monkeypatch.setattr(reports, "read", lambda _: dict(self.reports))
        monkeypatch.setattr(placement.threading, "Thread", lambda **_: Handle.__new__(_Thread))
        # Time stands still between choices: what was sent is owed until a test says otherwise, however slow the machine is.
        monkeypatch.setattr(placement, "monotonic", lambda: self.now_s)
        self.task = Task.of(product_request(LARGE).spec)

    def say(self, name: str, process: str = "1", **more: Any) -> None:
        """Have an executor report."""
        at_s = self.reports[name].at_s + 1 if name in self.reports else 1.0
        self.reports[name] = Report(process, "node", at_s, 0.0, {}, (), ())._replace(**more)

    def set_state(self, name: str, state: int) -> None:
        """Have an actor be in a state."""
        next(each for each in self.refs if each.name == name).actor.state = state

    def placer(self) -> Placer:
        """Return what knows all of this."""
        return Placer(self.refs)


class _Thread(Handle):
    def start(self) -> None:
        """Do nothing: tests say when there is something to see."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch, ["a", "b", "c"])


def chosen(placer: Placer, task: Task, count: int, **buffers: object) -> list[str]:
    return [placer.choose(task, buffers, "default", None).executor.name for _ in range(count)]


def test_calls_are_spread_over_executors_that_are_equally_busy(seen: Seen) -> None:
    assert sorted(chosen(seen.placer(), seen.task, 6)) == ["a", "a", "b", "b", "c", "c"]


def test_what_others_have_sent_somewhere_is_known_from_its_report(seen: Seen) -> None:
    for name, backlog_s in (("a", 60.0), ("b", 0.0), ("c", 60.0)):
        seen.say(name, backlog_s=backlog_s, at_s=2e9)
    assert chosen(seen.placer(), seen.task, 5) == ["b"] * 5


@pytest.mark.parametrize("names", ["a", "abc"])
def test_quick_calls_have_a_lane_where_order_does_not_matter(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """A group's share, and a priority, count among the calls that an executor sees: those behind a few others are not seen."""
    seen = Seen(monkeypatch, names)
    placer = seen.placer()
    digest = seen.task.serialized.digest
    assert placer.choose(seen.task, {}, "default", in_order=True).lane is None
    for name in names:
        seen.say(name, quick={digest})
    placer.refresh()
    assert placer.choose(seen.task, {}, "default", in_order=True).lane == policies.QUICK
    assert placer.choose(seen.task, {}, "default", in_order=False).lane is None
    assert placer.choose(seen.task, {}, "team", in_order=True).lane is None


def test_an_old_report_counts_less(seen: Seen) -> None:
    seen.say("a", backlog_s=60.0)
    assert "a" in chosen(seen.placer(), seen.task, 3)


def test_executors_that_have_not_come_up_are_not_waited_for(seen: Seen) -> None:
    assert set(chosen(seen.placer(), seen.task, 9)) == {"a", "b", "c"}  # none has
    seen.say("b")
    placer = seen.placer()
    assert chosen(placer, seen.task, 5) == ["b"] * 5
    seen.say("c")
    placer.refresh()
    assert chosen(placer, seen.task, 3) == ["c"] * 3


def test_one_that_has_ended_gets_calls_when_it_is_there_again_and_empty(seen: Seen) -> None:
    constant = ray.ObjectRef(bytes(28))
    for name in "abc":
        seen.say(name, held=[constant.binary()] if name == "a" else [])
    placer = seen.placer()
    assert chosen(placer, seen.task, 1, a=constant) == ["a"]
    seen.set_state("a", 3)
    assert "a" not in chosen(placer, seen.task, 9)
    seen.set_state("a", 2)
    placer.refresh()  # the report is that of the process before
    assert "a" not in chosen(placer, seen.task, 9)
    seen.say("a", process="2")
    placer.refresh()
    assert chosen(placer, seen.task, 1) == ["a"]


def test_the_last_one_that_is_there_gets_calls_though_it_has_ended(seen: Seen) -> None:
    seen.say("a")
    placer = seen.placer()
    seen.set_state("a", 3)
    assert chosen(placer, seen.task, 2) == ["a"] * 2


def test_what_an_executor_holds_or_has_dropped_is_known_from_its_report(seen: Seen) -> None:
    constant = ray.ObjectRef(bytes(28))
    for name in "abc":
        seen.say(name)
    placer = seen.placer()
    first = placer.choose(seen.task, {"a": constant}, "default", None)
    assert first.chosen is not None
    placer._tenants.ended(first.chosen, seen.now_s)
    other = "b" if first.executor.name != "b" else "c"
    seen.say(first.executor.name, dropped=[constant.binary()])
    seen.say(other, held=[constant.binary()])
    placer.refresh()
    assert chosen(placer, seen.task, 1, a=constant) == [other]


def test_an_executor_that_is_asked_for_is_taken_also_while_it_is_not_there(seen: Seen) -> None:
    seen.say("b")
    placer = seen.placer()
    assert placer.choose(seen.task, {}, "default", "a").executor.name == "a"
    assert placer.choose(seen.task, {}, "default", "b").executor.name == "b"
    with pytest.raises(InvalidArgumentError, match="there are a, b, c"):
        placer.choose(seen.task, {}, "default", "d")


@pytest.fixture
def uploaded(settled: Callable[[str], Any]) -> Callable[[], dict[str, int]]:
    """Return what says how many bytes were brought to each device since the test began.

    It begins when this process knows that they have nothing to do. What an executor has last reported, while it ran the calls of
    another test, keeps calls from it until its next report; on a busy machine that may be late, and a chain begins elsewhere.
    """

    def now() -> dict[str, int]:
        return {name: settled(name).uploaded_bytes for name in kaas_ray.executors()}

    before = now()
    wait_until(lambda: not any(report.calls or report.backlog_s for report in reports.read(list(before)).values()))
    Session.current().placer.refresh()
    return lambda: {name: found - before[name] for name, found in now().items()}


@pytest.mark.usefixtures("cluster")
class TestOnACluster:
    def test_a_chain_stays_on_one_executor(self, uploaded: Callable[[], dict[str, int]]) -> None:
        product = kaas_ray.remote(product_request(LARGE))
        a, b = vectors(70, LARGE)
        reference, factor = ray.put(a), ray.put(b)
        for _ in range(10):
            reference = product.remote(a=reference, b=factor)
        assert np.array_equal(ray.get(reference), a * b**10)
        assert sorted(uploaded().values()) == [0, a.nbytes + b.nbytes]

    def test_two_chains_are_on_two_executors(self, uploaded: Callable[[], dict[str, int]], tmp_path: Path) -> None:
        product = kaas_ray.remote(product_request(LARGE))
        starts = [vectors(71 + chain, LARGE) for chain in range(2)]
        factors = [ray.put(b) for _, b in starts]
        references: list[Any] = [when.remote(tmp_path / "go", a) for a, _ in starts]
        for _ in range(10):
            for chain in range(2):
                references[chain] = product.remote(a=references[chain], b=factors[chain])
        (tmp_path / "go").touch()
        for (a, b), result in zip(starts, ray.get(references), strict=True):
            assert np.array_equal(result, a * b**10)
        assert list(uploaded().values()) == [8 * LARGE] * 2

    def test_a_constant_is_brought_to_one_executor_while_that_has_time(self, uploaded: Callable[[], dict[str, int]]) -> None:
        scaled = kaas_ray.remote(scaled_request(LARGE))
        weights, x = vectors(73, LARGE)
        reference = ray.put(weights)
        for _ in range(20):
            assert np.array_equal(ray.get(scaled.remote(x=x, weights=reference)), x * weights)
        assert sorted(uploaded().values()) == [0, 21 * x.nbytes]

    def test_a_constant_is_brought_elsewhere_rather_than_waited_for(self, uploaded: Callable[[], dict[str, int]]) -> None:
        scaled = kaas_ray.remote(scaled_request(LARGE))
        weights, x = vectors(74, LARGE)
        reference = ray.put(weights)
        ray.get(scaled.options(executor="emulator:0").remote(x=x, weights=reference))
        busy = kaas_ray.remote(spin_request()).options(executor="emulator:0").remote(flag=ZERO)
        try:
            assert not ray.wait([busy], timeout=0.3)[0]
            assert np.array_equal(ray.get(scaled.remote(x=x, weights=reference), timeout=WITHIN_S), x * weights)
        finally:
            cancel(busy)
        assert list(uploaded().values()) == [2 * x.nbytes] * 2

    def test_others_calls_are_got_out_of_the_way_of(self) -> None:
        @ray.remote(num_cpus=0)
        def occupy() -> Any:
            return [kaas_ray.remote(spin_request()).options(executor="emulator:1").remote(flag=ZERO)]

        (theirs,) = ray.get(occupy.remote())
        try:
            deadline = monotonic() + WITHIN_S
            while reports.read(["emulator:1"])["emulator:1"].backlog_s < 1:
                assert monotonic() < deadline
                sleep(0.05)
            executors, task = Session.current().executors, Task.of(spin_request().spec)
            assert [Placer(executors).choose(task, {}, "default", None).executor.name for _ in range(5)] == ["emulator:0"] * 5
        finally:
            cancel(theirs)

    def test_calls_that_are_answered_count_no_more(self) -> None:
        spin = kaas_ray.remote(spin_request())
        placer = Session.current().placer
        results: list[Words] = ray.get([spin.remote(flag=ONE) for _ in range(50)])
        assert results == [1] * 50
        dropped = [spin.remote(flag=ONE) for _ in range(10)]
        with pytest.raises(GroupNotFoundError):
            kaas_ray.get(spin.options(group="none").remote(flag=ONE))
        ray.get(spin.remote(flag=ONE))
        del dropped
        deadline = monotonic() + WITHIN_S
        while len(placer._sent) > 1:
            assert monotonic() < deadline
            sleep(0.05)
            ray.get(spin.remote(flag=ONE))
