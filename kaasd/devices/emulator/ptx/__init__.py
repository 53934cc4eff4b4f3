"""PTX as text: what the grammar says, and nothing of what instructions mean."""

from kaasd.devices.emulator.ptx.ast import Module
from kaasd.devices.emulator.ptx.lexer import PtxSyntaxError
from kaasd.devices.emulator.ptx.parser import parse

__all__ = ["Module", "PtxSyntaxError", "parse"]
