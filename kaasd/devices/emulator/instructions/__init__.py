"""The semantics of every instruction, by family. Importing a family enters it in the table."""

from __future__ import annotations

from importlib import import_module

FAMILIES = (
    "integer",
    "carry",
    "bits",
    "video",
    "lanes",
    "comparison",
    "floating",
    "half",
    "conversion",
    "packing",
    "memory",
    "atomic",
    "control",
    "stack",
    "warp",
    "barrier",
    "asynchronous",
    "matrix",
    "tensor",
    "quads",
    "sparse",
    "wmma",
)


def load() -> None:
    """Enter every family in the table."""
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
