"""What is told of entry points from PTX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kaas_core.ptx_entries import Entry, Header, Parameter, entries_of, header_of
from kaasd.devices.emulator.runtime.device import EmulatedDevice

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
    assert entries_of([text]) == {
        "a": Entry(
            (
                Parameter("p", 8, 8, is_pointer=True),
                Parameter("s", 16, 32),
                Parameter("c", 1, 1),
                Parameter("t", 8, 8),
                Parameter("v", 16, 16),
                Parameter("$h%1", 2, 2),
            )
        ),
        "b": Entry((), max_threads=128),
        "c": Entry(()),
        "odd": Entry(None),
    }


def test_directives_of_an_entry() -> None:
    text = """.version 8.7
    .target sm_90a, debug
    .entry k(.param .u64 x) .maxntid 16, 4 .minnctapersm 1 .reqnctapercluster 2, 1, 1 { ret; }
    .entry l() .reqntid 128 { { ret; } }"""
    assert entries_of([text]) == {
        "k": Entry((Parameter("x", 8, 8),), max_threads=64, cluster=(2, 1, 1)),
        "l": Entry((), required_block=(128, 1, 1)),
    }
    assert header_of(text) == Header(87, "sm_90a")
    assert header_of("nothing") == Header(0, "")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_it_tells_what_the_emulated_device_reads(path: Path, emulator: EmulatedDevice) -> None:
    found = entries_of([path.read_text()])
    kernels = emulator.load(path.read_bytes()).kernels
    assert sorted(found) == sorted(kernels)
    for name, kernel in kernels.items():
        attributes = kernel.attributes
        assert [(each.name, each.alignment_bytes, each.size_bytes) for each in found[name].parameters or ()] == list(
            zip(
                attributes.parameter_names,
                attributes.parameter_alignment_bytes,
                attributes.parameter_size_bytes or (),
                strict=True,
            )
        )
        assert found[name].required_block == attributes.required_block
