"""Requests that have cost several workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import QuarantinedError, RequestNotFoundError
from kaasd.front.quarantine import MOST_KNOWN, MOST_WORKERS, Quarantine
from kaasd.ipc.messages import SerializedRequest
from tests.front.support import call, run, supervised

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
    assert "has cost 3 workers" in error.message and error.message.endswith(
        "fault 2; it is not run any more, until an operator releases it"
    )
    assert error.metadata == {"workers": "3", "last_fault": "fault 2", "request": POISON.hex()}
    (listed,) = quarantine.list().items()
    assert listed == (POISON.hex(), quarantine.suspected[POISON])
    assert (listed[1].workers, listed[1].last_fault) == (3, "fault 2")


def test_what_is_refused_is_listed_in_pages() -> None:
    quarantine = Quarantine()
    digests = [bytes([number]) * 32 for number in (9, 200, 17, 3)]
    for digest in digests * MOST_WORKERS:
        quarantine.cost(digest, "a fault")
    ids = [digest.hex() for digest in sorted(digests)]
    assert list(quarantine.list()) == ids
    assert list(quarantine.list(limit=2)) == ids[:2]
    assert list(quarantine.list(after=ids[1], limit=1)) == ids[2:3]
    assert list(quarantine.list(after=ids[1])) == ids[2:]
    assert not quarantine.list(after="no digest")


def test_what_is_released_may_cost_as_much_again() -> None:
    quarantine = quarantined()
    quarantine.release(POISON.hex())
    for number in range(1, MOST_WORKERS):
        quarantine.cost(POISON, f"again {number}")
    assert not quarantine.refused and not quarantine.list()
    quarantine.cost(POISON, "once too often")
    assert quarantine.refused == {POISON}


def test_only_what_is_refused_is_released() -> None:
    quarantine = quarantined()
    for request_id in (OTHER.hex(), POISON.hex().upper() + " ", "no digest", ""):
        with pytest.raises(RequestNotFoundError, match="is refused"):
            quarantine.release(request_id)
    assert quarantine.refused == {POISON} and OTHER in quarantine.suspected
    quarantine.release(POISON.hex())
    with pytest.raises(RequestNotFoundError, match=POISON.hex()[:20]):
        quarantine.release(POISON.hex())


def test_what_has_run_well_is_no_suspect_any_more() -> None:
    quarantine = Quarantine()
    for _ in range(3 * MOST_WORKERS):
        quarantine.cost(POISON, "killed by somebody")
        quarantine.ran_well(POISON)
    assert not quarantine.refused and not quarantine.suspected


def test_what_is_refused_stays_refused_whatever_ends_later() -> None:
    quarantine = quarantined()
    quarantine.ran_well(POISON)
    assert quarantine.refused == {POISON}


def test_the_oldest_are_forgotten() -> None:
    quarantine = quarantined()
    for number in range(MOST_KNOWN):
        quarantine.cost(number.to_bytes(32), "a fault")
    assert not quarantine.refused


def test_what_costs_workers_as_it_is_prepared_is_refused_however_it_comes(tmp_path: Path) -> None:
    request = SerializedRequest.of(b"poison")

    async def body() -> None:
        async with supervised(tmp_path, "die preparing") as worker:
            for said in ("was running each time when 3 workers died", "has cost 3 workers"):
                with pytest.raises(QuarantinedError, match=said):
                    await worker.call(worker_pb2.ToWorker(prepare=worker_pb2.Prepare()), request)
            with pytest.raises(QuarantinedError, match="has cost 3 workers"):
                await call(worker, "look", request)
            await call(worker, "look")
            assert worker.info.restarts == 1  # the others were no neighbour's

    run(body())


def test_what_ran_well_is_proven_until_it_has_cost_two_workers() -> None:
    quarantine = Quarantine()
    assert not quarantine.is_proven(POISON)
    quarantine.ran_well(POISON)
    quarantine.cost(POISON, "killed by somebody")
    assert quarantine.is_proven(POISON) and not quarantine.is_proven(OTHER)
    quarantine.cost(POISON, "killed by somebody")
    assert not quarantine.is_proven(POISON)
    quarantine.ran_well(POISON)
    assert quarantine.is_proven(POISON) and not quarantine.suspected
