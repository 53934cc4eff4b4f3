"""What a worker is told when it starts: one JSON object on its command line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from kaasd.devices.options import EmulatorOptions


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Settings of one worker, the same at every restart."""

    device: str
    """``cuda:N`` or ``emulator``."""
    store_path: str
    store_limit_bytes: int
    durability: str
    chunk_bytes: int
    library_roots: tuple[str, ...]
    emulator: EmulatorOptions = field(default_factory=EmulatorOptions)
    log_level: str = "INFO"
    spin_s: float = 0.0
    """How long to look for the next call instead of sleeping, where the last one was alone in flight."""
    spin_beside_others: bool = False
    """Look for it too where there were several."""
    concurrency: int = 16
    """Most requests that run on the device at a time."""
    device_memory_bytes: int | None = None
    """Most device memory to take; None: the executor's own share."""
    allow_host_wrappers: bool = False
    """Run host code of libraries."""

    def to_json(self) -> str:
        """Return the text for the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerConfig:
        """Return what ``to_json`` wrote."""
        fields = json.loads(text)
        emulator: dict[str, Any] = fields["emulator"]
        emulator |= {name: tuple(value) for name, value in emulator.items() if isinstance(value, list)}
        return cls(**{**fields, "library_roots": tuple(fields["library_roots"]), "emulator": EmulatorOptions(**emulator)})
