"""Executors: whoever submits picks one by load and data."""

from __future__ import annotations

import pytest

from kaasd.scheduling import Chosen, Datum, Executors, Placement


def executors(count: int, *, slots: int = 1, sticky: bool = True) -> Executors:
    made = Executors(sticky=sticky)
    for number in range(count):
        made.add(f"e{number}", slots)
    return made


def test_without_data_the_shortest_queue_is_next() -> None:
    known = executors(3)
    assert [known.choose((), 1.0, 0.0).executor for _ in range(4)] == ["e0", "e1", "e2", "e0"]
    assert [known.choose((), 0.1, 0.0).executor for _ in range(3)] == ["e1", "e2", "e1"]


def test_an_answer_shortens_the_queue() -> None:
    known = executors(2)
    first = known.choose((), 1.0, 0.0)
    known.choose((), 1.0, 0.0)
    known.ended(first, 0.2)
    assert known.choose((), 1.0, 0.2).executor == "e0"


def test_data_are_waited_for_as_long_as_bringing_them_elsewhere_takes() -> None:
    known = executors(2)
    data = [Datum("weights", 1.0)]
    chosen = [known.choose(data, 0.3, 0.0) for _ in range(5)]
    # The first brings them (1.0) and runs (0.3). Until then a request waits 1.3 there, and would begin after 1.0 at the other.
    assert [(each.executor, each.placement) for each in chosen[:2]] == [("e0", Placement.LOADED), ("e1", Placement.REPLICATED)]
    assert [each.placement for each in chosen[2:]] == [Placement.RESIDENT] * 3
    assert [each.executor for each in chosen[2:]] == ["e0", "e1", "e0"]


def test_data_that_are_there_decide_while_the_wait_is_shorter() -> None:
    known = executors(2)
    known.holds("e1", "weights")
    data = [Datum("weights", 1.0)]
    placed = [known.choose(data, 0.4, 0.0) for _ in range(4)]
    assert [(each.executor, each.placement) for each in placed] == [
        ("e1", Placement.RESIDENT),
        ("e1", Placement.RESIDENT),
        ("e1", Placement.RESIDENT),  # waits 0.8
        ("e0", Placement.REPLICATED),  # would wait 1.2
    ]


def test_where_data_do_not_matter_the_shortest_queue_is_next() -> None:
    known = executors(2, sticky=False)
    known.holds("e1", "weights")
    chosen = known.choose([Datum("weights", 1.0)], 0.4, 0.0)
    assert (chosen.executor, chosen.placement, chosen.planned_s) == ("e0", Placement.REPLICATED, 1.4)


def test_what_was_dropped_is_brought_again() -> None:
    known = executors(1)
    data = [Datum("a", 1.0), Datum("b", 2.0)]
    assert known.choose(data, 1.0, 0.0).planned_s == 4.0
    known.dropped("e0", "b")
    known.dropped("e0", "b")
    assert known.choose(data, 1.0, 0.0).planned_s == 3.0


def test_a_report_replaces_what_was_reckoned() -> None:
    known = executors(2)
    known.report("e0", 5.0, 1.0)
    known.report("gone", 5.0, 1.0)
    assert [known.choose((), 1.0, 1.0).executor for _ in range(5)] == ["e1"] * 5
    known.report("e0", 0.0, 2.0)
    assert known.choose((), 1.0, 2.0).executor == "e0"


def test_a_report_says_what_others_have_sent() -> None:
    known = executors(2)
    first, second = (known.choose((), 1.0, 0.0) for _ in range(2))
    known.report("e0", 0.0, 0.0)  # the request has not come there yet
    known.report("e1", 3.0, 0.0)
    assert [known.choose((), 1.0, 0.0).executor for _ in range(2)] == ["e0", "e0"]
    known.ended(second, 0.5)  # what others have there goes on until 2.0
    known.ended(first, 0.5)
    assert known.choose((), 1.0, 0.5).executor == "e1"


def test_requests_that_were_shorter_than_expected_shorten_the_queue_once() -> None:
    known = executors(2)
    sent = [known.choose((), 1.0, 0.0) for _ in range(20)]
    for number, each in enumerate(sent[:10]):
        known.ended(each, (number + 1) * 0.1)
    assert known.ends_at(known.choose((), 1.0, 1.0), 1.0) == pytest.approx(6.9)  # five more of 1.0 at e0 from 0.9 on


def test_what_is_made_of_results_that_are_awaited_goes_where_these_will_be() -> None:
    """Two chains, each of whose steps waits for the one before: the first comes to one executor, the second to the other."""
    known = executors(2)
    went: list[list[str]] = [[], []]
    last: list[list[Chosen]] = [[], []]
    for step in range(10):
        for chain in range(2):
            data = [Datum((chain, step), 0.01)]
            known.report("e0", 0.0, float(step))  # nothing has come there yet
            chosen = known.choose(data, 1.0, float(step), last[chain])
            assert step == 0 or chosen.placement is Placement.RESIDENT
            last[chain] = [chosen]
            known.holds(chosen.executor, (chain, step + 1))
            went[chain].append(chosen.executor)
    assert went == [["e0"] * 10, ["e1"] * 10]


def test_a_chain_leaves_a_long_queue_where_that_is_worth_bringing_its_data() -> None:
    known = executors(1)
    first = known.choose((), 1.0, 0.0)
    for key in ("result", "large result"):
        known.holds("e0", key)
    for _ in range(5):
        known.choose((), 1.0, 0.0)
    known.add("e1")
    # There it would begin at 6.0, here at 1.0, with what must be brought.
    assert known.choose([Datum("result", 4.0)], 1.0, 0.0, [first]).executor == "e1"
    assert known.choose([Datum("large result", 5.1)], 1.0, 0.0, [first]).executor == "e0"


def test_a_request_may_be_for_one_executor_only() -> None:
    known = executors(2)
    known.holds("e1", "weights")
    chosen = known.choose([Datum("weights", 1.0)], 5.0, 0.0, only="e0")
    assert (chosen.executor, chosen.placement, known.ends_at(chosen, 0.0)) == ("e0", Placement.REPLICATED, 6.0)
    assert known.choose((), 1.0, 0.0).executor == "e1"
    with pytest.raises(LookupError):
        known.choose((), 1.0, 0.0, only="e7")


def test_an_executor_that_is_late_is_avoided() -> None:
    known = executors(2)
    known.choose((), 0.1, 0.0)
    known.choose((), 3.0, 0.0)
    # At 2.0 the first is late by 1.9, and may take as long again; the second needs 1.0 more.
    assert known.choose((), 1.0, 2.0).executor == "e1"


def test_one_that_comes_back_is_empty() -> None:
    known = executors(2)
    data = [Datum("weights", 1.0)]
    known.holds("e0", "weights")
    lost = known.choose(data, 9.0, 0.0)
    known.remove("e0")
    assert "e0" not in known
    assert known.choose(data, 1.0, 0.0).placement is Placement.LOADED
    known.add("e0")
    known.ended(lost, 9.0)
    assert known.choose((), 1.0, 0.0).executor == "e0"
    known.remove("e0")
    known.remove("e1")
    with pytest.raises(LookupError):
        known.choose((), 1.0, 0.0)


def test_of_two_that_could_begin_at_once_the_one_that_has_the_data() -> None:
    known = executors(2)
    known.holds("e0", "weights")
    data = [Datum("weights", 1.0)]
    known.choose(data, 1.0, 0.0)
    chosen = known.choose(data, 1.0, 0.0)
    assert (chosen.executor, chosen.placement) == ("e0", Placement.RESIDENT)
