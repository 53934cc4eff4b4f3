"""What a worker has begun outlives it."""

from __future__ import annotations

import os
import subprocess
import sys

from kaasd.ipc.channel import Progress, Stage

DIES = """
import os, sys
from kaasd.ipc.channel import Progress
worker = Progress(int(sys.argv[1]))
for call in (1, 2, 3):
    worker.begin(call)
worker.commit(2)
worker.end(3)
worker.begin(2**63)
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_word() -> None:
    shared = Progress.create(4)
    front = Progress(shared)
    subprocess.run([sys.executable, "-c", DIES, str(shared)], pass_fds=[shared], check=False)
    os.close(shared)
    assert front.begun() == {1: Stage.RUNNING, 2: Stage.COMMITTING, 2**63: Stage.RUNNING}
    front.close()


def test_places_are_used_again() -> None:
    shared = Progress.create(4)
    worker, front = Progress(shared), Progress(shared)
    os.close(shared)
    for call in range(1, 10_000):
        worker.begin(call)
        worker.commit(call)
        worker.end(call)
        worker.end(call)
    assert front.begun() == {}
    worker.begin(7)
    assert front.begun() == {7: Stage.RUNNING}
    front.close()
    worker.close()


def test_there_is_room_for_all() -> None:
    shared = Progress.create(1000)
    worker = Progress(shared)
    os.close(shared)
    for call in range(1, 1001):
        worker.begin(call)
    assert len(worker.begun()) == 1000
    worker.close()
