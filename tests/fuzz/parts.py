"""Operands of video instructions: bytes and half words of registers, lanes, and negated registers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from kaasd.devices.emulator.ptx.forms import Match

_PARTS = ("b0", "b1", "b2", "b3", "h0", "h1")


def choose(rng: random.Random, match: Match, operands: list[str], third: Callable[[], str]) -> list[str]:
    """Return the operands with parts of them chosen, result first; ``third`` makes an operand to merge the result into."""
    lanes = re.match(r"v[a-z]+([24])", match.mnemonic)
    if lanes:
        return _lanes(rng, int(lanes[1]), operands)
    chosen = [operands[0], *(_part(rng, operand) for operand in operands[1:3]), *operands[3:]]
    if match.mnemonic.startswith("vmad."):
        return _negated(rng, match, chosen)
    if len(chosen) == 3 and rng.random() < 0.4:
        return [f"{chosen[0]}.{rng.choice(_PARTS)}", *chosen[1:], third()]
    return chosen


def _is_constant(operand: str) -> bool:
    return not operand.startswith("%")


def _part(rng: random.Random, operand: str) -> str:
    return operand if _is_constant(operand) or rng.random() < 0.4 else f"{operand}.{rng.choice(_PARTS)}"


def _negated(rng: random.Random, match: Match, operands: list[str]) -> list[str]:
    """A factor or the addend; none with ``.po``, and no constants."""
    place = rng.randrange(4)
    if place == 0 or "po" in match or _is_constant(operands[place]):
        return operands
    return [*operands[:place], f"-{operands[place]}", *operands[place + 1 :]]


def _lanes(rng: random.Random, count: int, operands: list[str]) -> list[str]:
    """A mask of the result's lanes, and of each source as many of both registers' lanes as there are."""
    letter = {2: "h", 4: "b"}[count]
    places = range(count)
    mask = "".join(str(place) for place in reversed(places) if rng.getrandbits(1)) or str(rng.choice(places))
    picked = ["".join(str(rng.randrange(2 * count)) for _ in places) for _ in range(2)]
    selectors = zip(operands, (mask, *picked), strict=False)
    chosen = [f"{operand}.{letter}{digits}" if rng.random() < 0.6 else operand for operand, digits in selectors]
    chosen = [operand.removesuffix(".b1024") for operand in chosen]  # a type to ptxas, which finds a syntax error
    return [*chosen, *operands[3:]]
