"""Requests that have cost several workers."""

from __future__ import annotations

from kaasd.front.quarantine import MOST_KNOWN, MOST_WORKERS, Quarantine

POISON, OTHER = b"\x01" * 32, b"\x02" * 32


def quarantined() -> Quarantine:
    quarantine = Quarantine()
    for number in range(MOST_WORKERS):
        assert POISON not in quarantine.refused
        quarantine.cost(POISON, f"fault {number}")
        quarantine.cost(OTHER, "a fault") if number == 0 else None
    return quarantine


def test_what_has_cost_several_workers_is_refused_with_its_history() -> None:
    quarantine = quarantined()
    assert quarantine.refused == {POISON}
    error = quarantine.refusal(POISON)
    assert "has cost 3 workers" in error.message and error.message.endswith("fault 2; it is not run any more")
    assert error.metadata == {"workers": "3", "last_fault": "fault 2", "request": POISON.hex()}
    assert list(quarantine.list()) == [POISON.hex()]


def test_what_is_released_may_cost_as_much_again() -> None:
    quarantine = quarantined()
    assert not quarantine.release(OTHER.hex())
    assert not quarantine.release("no digest")
    assert quarantine.release(POISON.hex())
    assert not quarantine.release(POISON.hex())
    quarantine.cost(POISON, "again")
    assert not quarantine.refused and not quarantine.list()


def test_what_has_run_well_is_no_suspect_any_more() -> None:
    quarantine = Quarantine()
    for _ in range(3 * MOST_WORKERS):
        quarantine.cost(POISON, "killed by somebody")
        quarantine.acquit(POISON)
    assert not quarantine.refused and not quarantine.suspected


def test_what_is_refused_stays_refused_whatever_ends_later() -> None:
    quarantine = quarantined()
    quarantine.acquit(POISON)
    assert quarantine.refused == {POISON}


def test_the_oldest_are_forgotten() -> None:
    quarantine = quarantined()
    for number in range(MOST_KNOWN):
        quarantine.cost(number.to_bytes(32), "a fault")
    assert not quarantine.refused
