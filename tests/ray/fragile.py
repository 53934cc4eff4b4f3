"""An executor whose device ends as a GPU does: kernels of the library of faults cost it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from kaas_client.ray.executor import ExecutorActor
from kaasd.devices.base import KernelFault

MISALIGNED = "CUDA_ERROR_MISALIGNED_ADDRESS"


class FragileExecutor(ExecutorActor):
    """A fault loses the device; a misaligned access kills the process. Each start is noted in a file."""

    def __init__(self, starts: Path) -> None:
        with starts.open("a") as file:
            file.write(f"{os.getpid()}\n")
        super().__init__("emulator")
        executor: Any = self._engine.executor
        explain = executor.explain

        def lose(error: Exception, *rest: Any) -> Any:
            if isinstance(error, KernelFault):
                if error.fault == MISALIGNED:
                    os.kill(os.getpid(), signal.SIGKILL)
                error.device_lost = True
            return explain(error, *rest)

        executor.explain = lose
