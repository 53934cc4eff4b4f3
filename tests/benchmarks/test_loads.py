"""What callers of groups saw, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import pytest

from benchmarks.__main__ import SECTIONS, names_of
from benchmarks.crew import Crew
from benchmarks.loads import Contest, Load, LoadCrew, Seen, part_got
from benchmarks.report import Target
from benchmarks.rows.sharing import in_group, invocation
from benchmarks.turns import Figure


def seen(answered: list[float], latency_s: float = 0.5, run_s: float = 0.1, until: float = math.inf) -> Seen:
    return Seen([when - latency_s for when in answered], answered, [run_s] * len(answered), 1.0, until)


def test_the_beginning_and_what_came_after_the_end_are_not_counted() -> None:
    load = seen([0.2, 0.9, 1.5, 2.0, 2.5, 3.0, 8.0, 9.0], until=3.0)
    assert load.while_all_called == [(when, 0.1) for when in (1.5, 2.0, 2.5, 3.0)]
    assert load.rate == pytest.approx(2.0)
    assert load.latencies == pytest.approx([0.5] * 8)


def test_too_few_answers_have_no_rate() -> None:
    assert seen([2.0]).rate == 0.0


def test_a_part_is_counted_from_answer_to_answer() -> None:
    """Four of the others for each of mine, wherever the clock starts and stops."""
    others = [(0.1 * number, 1.0) for number in range(103)]
    mine = [(0.45 + 0.4 * number, 1.0) for number in range(20)]
    assert part_got(mine, others) == pytest.approx(1 / 5)
    assert part_got(mine, others[3:95]) == pytest.approx(1 / 5)


def test_a_part_is_one_of_device_time() -> None:
    """One that takes long is paid for by what others get behind it."""
    mine = [(1.0, 3.0), (2.0, 1.0), (3.0, 7.0)]
    others = [(0.5, 50.0), (1.2, 6.0), (1.7, 6.0), (2.5, 4.0), (3.1, 50.0)]
    assert part_got(mine, others) == pytest.approx(4 / 20)


def test_no_part_of_one_answer() -> None:
    assert math.isnan(part_got([(1.0, 1.0)], [(2.0, 1.0)]))


class FakeCrew:
    """Answers for each load with its number of connections as the time of the only answer."""

    size = 2

    def __init__(self) -> None:
        self.functions: list[list[str]] = []

    def run(self, orders: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        orders = list(orders)
        self.functions.append([" ".join(load["connection"] for load in order["loads"]) for order in orders])
        found = [[float(load["connections"])] for order in orders for load in order["loads"]]
        answers = iter(
            {
                **dict.fromkeys(("begun", "answered", "ran_s"), times),
                **{name: {"resident": 1} for name in ("placements", "devices", "brought")},
                "since": 0.0,
                "until": 9.0,
            }
            for times in found
        )
        return [{"loads": [next(answers) for _ in order["loads"]]} for order in orders]


def test_loads_are_dealt_out_and_found_again() -> None:
    fake = FakeCrew()
    crew = LoadCrew(cast(Crew, fake))
    loads = [Load(invocation(name, "", "p"), {}, connections=number) for number, name in enumerate("abc")]
    assert [load.answered for load in crew.run("unix:x", loads, 1.0)] == [[0.0], [1.0], [2.0]]
    assert [load.answered for load in crew.run("unix:x", loads, 1.0, one_process=True)] == [[0.0], [1.0], [2.0]]
    assert fake.functions == [["a  c ", "b "], ["a  b  c "]]


def test_a_contest_keeps_what_was_seen_but_for_its_warm_up() -> None:
    contest = Contest(LoadCrew(cast(Crew, FakeCrew())), 1.0)
    measure = contest.contender("kaasd", "unix:x", [Load(invocation("a", "", "p"), {}, connections=4)])
    assert contest.seen == {"kaasd": []}
    assert measure() == measure() == [0.0]
    assert contest.rates("kaasd", slice(None)) == [[0.0], [0.0]]
    assert contest.latencies("kaasd") == [0.0, 0.0]


def test_a_call_for_another_group_is_the_same_otherwise() -> None:
    message = invocation("dot", "tiny", "c")
    message.bindings["a"].value = b"1234"
    other = in_group(message, "large")
    assert (message.group, other.group) == ("tiny", "large")
    other.group = "tiny"
    assert other == message


def test_a_target_may_have_two_bounds() -> None:
    target = Target("wanted", Figure.of([0.9]), at_least=0.95, at_most=1.05)
    assert not target.met
    assert str(target) == "0.9 × wanted (≥ 0.95, ≤ 1.05)"  # noqa: RUF001


def test_sections_go_by_their_first_word_too() -> None:
    named = [section.name for section in SECTIONS if "sharing" in names_of(section)]
    assert len(named) > 1
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)
