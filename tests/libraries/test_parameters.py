"""Names and alignments of parameters, told from PTX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.libraries.parameters import Parameter, parameters_of

TEXTS = sorted(Path(__file__).parents[1].glob("co*/*/*.ptx")) + sorted(Path(__file__).parents[2].glob("examples/kernels/*.ptx"))


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatedDevice]:
    with closing(EmulatedDevice()) as opened:
        yield opened


def test_every_kind_of_declaration() -> None:
    text = """
    // .entry no(.param .u64 x)
    .visible .entry a(.param .u64 .ptr .global .align 4 p, .param .align 16 .b8 s[32], /* a comment, */ .param .b8 c,
        .param .align 8 .b8 t[2][4], .param .v4 .f32 v, .param .b16 $h%1)
    { ret; }
    .entry b() .maxntid 128 { ret; }
    .weak .entry c { ret; }
    .entry odd(.param .wrong x) { ret; }
    .func f(.param .u64 x) { ret; }"""
    assert parameters_of([text]) == {
        "a": (
            Parameter("p", 8),
            Parameter("s", 16),
            Parameter("c", 1),
            Parameter("t", 8),
            Parameter("v", 16),
            Parameter("$h%1", 2),
        ),
        "b": (),
    }


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_it_tells_what_the_emulated_device_reads(path: Path, emulator: EmulatedDevice) -> None:
    found = parameters_of([path.read_text()])
    kernels = emulator.load(path.read_bytes()).kernels
    assert sorted(found) == sorted(kernels)
    for name, kernel in kernels.items():
        attributes = kernel.attributes
        assert found[name] == tuple(map(Parameter, attributes.parameter_names, attributes.parameter_alignment_bytes))
