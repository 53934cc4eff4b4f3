"""The whole instruction set. Importing this module enters every family of instructions in the table."""

from __future__ import annotations

from importlib import import_module

from kaasd.devices.emulator.isa import special_registers, table
from kaasd.devices.emulator.ptx.forms import InstructionSet

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
    "load_store",
    "atomic",
    "control",
    "calls",
    "warp",
    "barrier",
    "asynchronous",
    "bulk",
    "tensor_map",
    "cluster",
    "matrix",
    "tensor",
    "quads",
    "sparse",
    "wmma",
    "texture",
    "warpgroup",
)

for _family in FAMILIES:
    import_module(f"kaasd.devices.emulator.isa.{_family}")

INSTRUCTION_SET = InstructionSet(table.find, special_registers.reader)
