"""Broken PTX: real modules with tokens and characters changed, and text of PTX's words in any order."""

from __future__ import annotations

import random
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TOKEN = re.compile(r"//[^\n]*|/\*.*?\*/|\"[^\"]*\"|[%$\w]+|\.[\w:]+|\s+|.", re.DOTALL)
_TEXT = """
.version .target .address_size .visible .entry .func .extern .weak .reg .param .shared .local .global .const .align .b8 .b16
.b32 .b64 .b128 .u8 .u16 .u32 .u64 .s8 .s16 .s32 .s64 .f16 .f32 .f64 .f16x2 .bf16 .pred .v2 .v4 .loc .file .section .pragma
.maxntid .reqntid .minnctapersm .branchtargets .calltargets .callprototype .alias .noreturn add sub mul mad fma div rem ld st
mov cvt cvta setp set selp slct bra brx call ret exit bar barrier shfl vote match redux atom red fence membar mma ldmatrix cp
mbarrier tex surf wgmma trap @ ! % $ _ { } ( ) [ ] < > ; , : | + - * / = ? ~ 0 1 -1 2 31 32 64 255 0x7FFFFFFF 4294967295
18446744073709551615 99999999999999999999 0f3F800000 0d7FF8000000000000 1.5 1e400 0fZZ 0b2 08 %tid.x %laneid %clock64 %nosuch
%p1 %r1 %rd1 %f1 WARP_SZ "text" sm_90 sm_52 generic
"""
_WORDS = _TEXT.split()
"""Words that take a token's place."""


def sources() -> list[Path]:
    """The modules to break: the examples and the fuzzer's own cases."""
    return sorted([*(ROOT / "examples" / "kernels").glob("*.ptx"), *Path(__file__).with_name("cases").glob("*.ptx")])


def _tokens(rng: random.Random, text: str) -> str:
    tokens = _TOKEN.findall(text)
    solid = [index for index, token in enumerate(tokens) if not token.isspace()]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        place = rng.choice(solid)
        way = rng.random()
        if way < 0.2:
            tokens[place] = ""
        elif way < 0.3:
            tokens[place] += " " + tokens[place]
        elif way < 0.5:
            other = rng.choice(solid)
            tokens[place], tokens[other] = tokens[other], tokens[place]
        elif way < 0.75:  # a word of the same kind from elsewhere, which often passes the parser
            kind = tokens[place][:1]
            alike = [tokens[index] for index in solid if tokens[index][:1] == kind]
            tokens[place] = rng.choice(alike)
        else:
            tokens[place] = rng.choice(_WORDS)
    return "".join(tokens)


def _characters(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text))
    way = rng.random()
    if way < 0.3:
        return text[:place]
    if way < 0.6:
        return text[:place] + chr(rng.choice((0, 9, 34, 37, 46, 123, 125, 127, 233, 8364))) + text[place + 1 :]
    length = rng.randrange(1, 200)
    return text[:place] + text[place + length :] if way < 0.8 else text[: place + length] + text[place:]


def mutated(rng: random.Random, text: str) -> str:
    """Return a module with something in it changed."""
    return (_characters if rng.random() < 0.2 else _tokens)(rng, text)


def noise(rng: random.Random) -> str:
    """Return words of PTX in any order, behind a module's usual first lines or not."""
    head = ".version 8.0\n.target sm_90\n.address_size 64\n" if rng.random() < 0.8 else ""
    if rng.random() < 0.5:
        head += ".visible .entry k(.param .u64 a)\n{\n"
    return head + " ".join(rng.choice(_WORDS) for _ in range(rng.randrange(1, 60)))
