"""When a worker that cannot start is tried again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kaas.v1 import admin_pb2
from kaas_core.errors import WorkerRestartingError
from kaasd.front import worker_process
from kaasd.front.worker_process import RestartPolicy
from tests.front.support import call, run, supervised, until


def test_a_call_brings_the_next_start_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "RestartPolicy", lambda: RestartPolicy(first_delay_s=1e9, longest_delay_s=1e9))
    monkeypatch.setattr(worker_process, "WANTED_DELAY_S", 0.001)

    async def body() -> None:
        async with supervised(tmp_path, "fail until told") as worker:
            os.kill(worker.info.worker_pid, signal.SIGKILL)
            await until(lambda: worker.info.state != admin_pb2.WORKER_STATE_READY)
            with pytest.raises(WorkerRestartingError, match="has not started 3 times in a row"):
                await call(worker, "look")
            (tmp_path / "scripted" / "start").touch()
            with pytest.raises(WorkerRestartingError):
                await call(worker, "look")
            await until(lambda: worker.info.state == admin_pb2.WORKER_STATE_READY)
            await call(worker, "look")

    run(body())
