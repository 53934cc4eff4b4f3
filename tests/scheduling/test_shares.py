"""Which part of the devices groups are due, and have got lately."""

from __future__ import annotations

from kaasd.scheduling import Group, GroupUse
from kaasd.scheduling.shares import SAMPLE_S, WINDOW_S, ShareMeter, Shares

BIG, SMALL = Group("big", 3.0), Group("small")


def use(device_s: float = 0.0, *, queued: int = 0, running: int = 0) -> GroupUse:
    return GroupUse(queued=queued, queued_bytes=0, running=running, device_s=device_s, started=0, resident=0)


def test_no_group_and_no_use() -> None:
    meter = ShareMeter()
    assert meter.shares({}) == {}
    assert meter.shares({BIG: use(), SMALL: use()}) == {"big": Shares(0, 0), "small": Shares(0, 0)}


def test_what_is_wanted_is_a_part_of_the_shares_of_those_that_have_requests() -> None:
    meter = ShareMeter()

    def wanted(big: GroupUse, small: GroupUse) -> tuple[float, float]:
        shares = meter.shares({BIG: big, SMALL: small, Group("idle", 100.0): use()})
        assert shares["idle"].wanted == 0
        return shares["big"].wanted, shares["small"].wanted

    assert wanted(use(queued=1), use(running=2)) == (0.75, 0.25)
    assert wanted(use(), use(queued=7)) == (0, 1)


def test_what_was_got_is_a_part_of_the_device_time_since_the_window_began() -> None:
    meter, now, big, small = ShareMeter(), 100.0, 50.0, 1.0
    for _ in range(2 * round(WINDOW_S / SAMPLE_S)):  # small alone
        meter.sample({BIG: use(big), SMALL: use(small)}, now)
        now, small = now + SAMPLE_S, small + 1
    assert meter.shares({BIG: use(big), SMALL: use(small)})["small"] == Shares(0, 1)
    for _ in range(round(WINDOW_S / SAMPLE_S) + 1):  # and three times as much of big
        meter.sample({BIG: use(big), SMALL: use(small)}, now)
        now, small, big = now + SAMPLE_S, small + 1, big + 3
    shares = meter.shares({BIG: use(big), SMALL: use(small)})
    assert (shares["big"].got, shares["small"].got) == (0.75, 0.25)


def test_a_device_that_is_no_longer_used_was_got_by_nobody() -> None:
    meter = ShareMeter()
    for now in (0.0, 1.0, WINDOW_S + 1):
        meter.sample({BIG: use(5.0)}, now)
    assert meter.shares({BIG: use(5.0)}) == {"big": Shares(0, 0)}


def test_groups_that_come_and_go() -> None:
    meter = ShareMeter()
    meter.sample({BIG: use(9.0)}, 0.0)
    assert meter.shares({SMALL: use(2.0)})["small"].got == 1
    shares = meter.shares({BIG: use(1.0), SMALL: use(3.0)})  # big was removed, and made again
    assert (shares["big"].got, shares["small"].got) == (0.25, 0.75)
