"""What an executor's process leaves for the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaas_client.ray.journal import MOST_REMEMBERED, MOST_TASKS, UNKNOWN_REASON, Journal

TASK, OTHER = "ab" * 24, "cd" * 24


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kaas" / "executor.journal"


def reasons(journal: Journal, task_id: str) -> list[str]:
    """Return the losses without their times."""
    return [loss.partition("Z: ")[2] for loss in journal.losses(task_id)]


def test_what_was_on_the_device_is_a_loss_of_the_next_process(path: Path) -> None:
    journal = Journal(path)
    journal.begin(TASK)
    journal.begin(OTHER)
    journal.end(OTHER)
    assert reasons(journal, TASK) == []
    assert reasons(Journal(path), TASK) == [UNKNOWN_REASON]
    assert reasons(Journal(path), OTHER) == []


def test_losses_add_up_until_the_task_has_ended(path: Path) -> None:
    for number in range(3):
        journal = Journal(path)
        journal.begin(TASK)
        journal.note(f"fault {number}")
    assert reasons(Journal(path), TASK) == ["fault 0", "fault 1", "fault 2"]
    last = Journal(path)
    last.begin(TASK)
    last.end(TASK)
    last.end(TASK)
    assert reasons(last, TASK) == reasons(Journal(path), TASK) == []


def test_a_long_reason_is_cut_and_does_not_touch_the_tasks(path: Path) -> None:
    journal = Journal(path)
    journal.begin(TASK)
    journal.note("ö" * 5000)
    (reason,) = reasons(Journal(path), TASK)
    assert reason == "ö" * 512


def test_so_many_tasks_fit_again_and_again(path: Path) -> None:
    journal = Journal(path)
    for _ in range(3):
        ids = [f"{number:048x}" for number in range(1, MOST_TASKS + 1)]
        for each in ids:
            journal.begin(each)
        assert all(reasons(Journal(path), each)[-1:] == [UNKNOWN_REASON] for each in ids)
        journal = Journal(path)
        for each in ids:
            journal.begin(each)
            journal.end(each)


def test_the_oldest_losses_are_forgotten(path: Path) -> None:
    for first in range(0, MOST_REMEMBERED + MOST_TASKS, MOST_TASKS):
        journal = Journal(path)
        for number in range(first, first + MOST_TASKS):
            journal.begin(f"{number:048x}")
    last = Journal(path)
    total = first + MOST_TASKS
    forgotten = [number for number in range(total) if not last.losses(f"{number:048x}")]
    assert len(forgotten) == total - MOST_REMEMBERED
    assert max(forgotten) < 2 * MOST_TASKS
