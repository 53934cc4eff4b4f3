"""Stores in a temporary folder, with chunks so small that every layout is met."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kaasd.store.base import Durability
from kaasd.store.lmdb_store import LmdbStore

CHUNK_BYTES = 4096
LIMIT_BYTES = 64 << 20
SETTINGS = {"limit_bytes": LIMIT_BYTES, "chunk_bytes": CHUNK_BYTES, "durability": Durability.NONE}
"""Nothing here waits for a disk, which on a busy machine takes longer than a test may."""

OpenStore = Callable[..., LmdbStore]


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def open_store(store_path: Path) -> Iterator[OpenStore]:
    """Open the store at ``store_path``; it is closed at the end of the test."""
    with ExitStack() as stack:

        def open_(**settings: Any) -> LmdbStore:
            store = LmdbStore(store_path, **SETTINGS | settings)
            return stack.enter_context(store)

        yield open_


@pytest.fixture
def store(open_store: OpenStore) -> LmdbStore:
    return open_store()


@pytest.fixture
def payload() -> Callable[[int], bytes]:
    """Return so many bytes, never the same again."""
    return random.Random(0).randbytes


@pytest.fixture
def read() -> Callable[..., bytes]:
    """Return a value, or a range of it."""

    def read_(store: LmdbStore, key: str, *where: Any, **more: Any) -> bytes:
        with store.snapshot() as snapshot:
            return b"".join(snapshot.pieces(key, *where, **more))

    return read_


@pytest.fixture
def start(store_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start another process that has opened ``store`` (not with ``bare="yes"``) and runs the code given.

    It is killed at the end of the test.
    """
    prologue = f"""
import os, sys, threading
from kaasd.store.base import *
from kaasd.store.lmdb_store import LmdbStore
store = None if "bare" in os.environ else LmdbStore(
    {str(store_path)!r},
    limit_bytes=int(os.environ.get("LIMIT_BYTES", {LIMIT_BYTES})),
    durability=Durability[os.environ.get("DURABILITY", "NONE")],
    chunk_bytes={CHUNK_BYTES},
)
def say(*words):
    print(*words, flush=True)
"""
    with ExitStack() as stack:

        def start_(code: str, **environment: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", prologue + code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=Path(__file__).parents[2],
            )
            stack.callback(partial(_end, process))
            return process

        yield start_


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
