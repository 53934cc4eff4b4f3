"""How long a new worker waits, after ones that served and ones that never did."""

from __future__ import annotations

from kaasd.front.worker_process import RestartPolicy


def test_a_worker_that_served_is_replaced_at_once_and_one_that_cannot_start_ever_later() -> None:
    policy = RestartPolicy(first_delay_s=0.25, longest_delay_s=2.0)
    assert policy.lost(was_ready=True) == 0.0
    assert [policy.lost(was_ready=False) for _ in range(5)] == [0.25, 0.5, 1.0, 2.0, 2.0]
    policy.ready()
    assert policy.lost(was_ready=False) == 0.25


def test_a_delay_between_two_doublings_is_the_longest() -> None:
    policy = RestartPolicy(first_delay_s=0.25, longest_delay_s=3.0)
    assert [policy.lost(was_ready=False) for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_worker_that_cannot_start_for_days_is_tried_still() -> None:
    policy = RestartPolicy()
    assert {policy.lost(was_ready=False) for _ in range(5000)} == {0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0}
