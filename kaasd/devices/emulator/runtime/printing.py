"""What device code printed: the records of ``vprintf``, formatted as C does."""

from __future__ import annotations

import re
import struct

from kaasd.devices.emulator.codegen.structures import PRINTED
from kaasd.devices.emulator.runtime.address_space import AddressSpace

_CONVERSION = re.compile(r"%([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+)?)?(hh|h|ll|l|j|z|t|L)?([diouxXcsfFeEgGaAp%])")
_LONGEST_TEXT = 1 << 20
"""Characters: a reply carries them all. With wide fields and long strings, a few bytes of arguments can ask for many more."""
_MOST_DIGITS = 1000
"""Of a width or precision."""


def format_printed(buffer: memoryview, space: AddressSpace) -> str:
    """Return the text of all records, up to a limit."""
    text, position, length = [], 0, 0
    while position < len(buffer):
        if length > _LONGEST_TEXT:
            text.append("\n[more was printed]\n")
            break
        record = PRINTED.ctype.from_buffer_copy(buffer[position : position + PRINTED.size])
        start = position + PRINTED.size
        arguments = bytes(buffer[start : start + record.size])
        text.append(_format(space.read_string(record.format), arguments, space))
        length += len(text[-1])
        position = start + record.size
    return "".join(text)


class _Arguments:
    """Variadic arguments as CUDA lays them out: each aligned to its own size, which is 4 or 8 bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, code: str) -> int | float:
        size = struct.calcsize(code)
        start = -(-self._position // size) * size
        self._position = start + size
        field = self._data[start : start + size].ljust(size, b"\0")
        value: int | float = struct.unpack("<" + code, field)[0]
        return value


def _format(text: str, data: bytes, space: AddressSpace) -> str:
    arguments = _Arguments(data)

    def convert(match: re.Match[str]) -> str:
        flags, width, precision, length, kind = match.groups()
        if kind == "%":
            return "%"
        if width == "*":
            width = str(arguments.take("i"))
        if precision == "*":
            precision = str(arguments.take("i"))
        if (width and abs(int(width)) > _MOST_DIGITS) or (precision and int(precision) > _MOST_DIGITS):
            return match.group()
        has_precision = "." in match.group()
        directive = f"%{flags}{width or ''}{'.' + (precision or '0') if has_precision else ''}"
        wide = length in ("l", "ll", "j", "z", "t")
        if kind in "fFeEgG":
            return (directive + kind) % arguments.take("d")
        if kind in "aA":
            number = float(arguments.take("d")).hex()
            return number.upper() if kind == "A" else number
        if kind == "p":
            return hex(int(arguments.take("Q")))
        if kind == "s":
            return (directive + "s") % space.read_string(int(arguments.take("Q")))
        if kind == "c":
            return (directive + "c") % chr(int(arguments.take("i")) & 255)
        value = int(arguments.take(("q" if wide else "i") if kind in "di" else ("Q" if wide else "I")))
        if length in ("h", "hh"):
            bits = 8 if length == "hh" else 16
            value &= (1 << bits) - 1
            if kind in "di" and value >> bits - 1:
                value -= 1 << bits
        if kind in "xXo" and value == 0:
            directive = directive.replace("#", "")  # C marks only other numbers
        if kind == "o" and "#" in flags and value:
            return (directive.replace("#", "") + "s") % f"0{value:o}"
        return (directive + ("d" if kind in "diu" else kind)) % value

    return _CONVERSION.sub(convert, text)
