"""Reading library files. The files under ``data`` were built by nvcc (see its Makefile)."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import lz4.block
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kaasd.libraries import UnsupportedLibrary
from kaasd.libraries.image import ImageKind, ptx_version, read_image

DATA = Path(__file__).parent / "data"
KERNELS = Path(__file__).parents[2] / "examples" / "kernels"
CUBIN_90 = (DATA / "dot.sm_90.cubin").read_bytes()
CONVENTION = (DATA / "convention.so").read_bytes()
DOT_PTX = (KERNELS / "dot.ptx").read_bytes()
LZ4_PTX = lz4.block.compress(DOT_PTX, store_size=False)
FILES = [
    *sorted(KERNELS.glob("*.ptx")),
    *sorted(DATA.glob("*.cubin")),
    *sorted(DATA.glob("*.fatbin")),
    *sorted(DATA.glob("*.so")),
]


def entries(ptx: str) -> list[str]:
    return re.findall(r"\.visible \.entry (\w+)", ptx)


def instructions(ptx: str) -> list[str]:
    """The text without comments and layout, in which nvcc's PTX and that in its fatbins differ."""
    return re.sub(r"//[^\n]*", "", ptx).split()


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.ptx")), ids=lambda path: path.name)
def test_ptx_is_read_as_it_stands(path: Path) -> None:
    data = path.read_bytes()
    image = read_image(data)
    assert image.kind is ImageKind.PTX
    assert image.ptx == (data.decode(),)
    assert image.cubins == ()
    assert image.units == (data + b"\0",)
    assert ptx_version(image.ptx[0]) == (9, 0)


def test_ptx_may_end_in_zeros() -> None:
    assert read_image(DOT_PTX + b"\0\0").ptx == (DOT_PTX.decode(),)


def test_cubin() -> None:
    image = read_image(CUBIN_90)
    assert image.kind is ImageKind.CUBIN
    assert [(cubin.sm, cubin.data) for cubin in image.cubins] == [(90, CUBIN_90)]
    assert (image.ptx, image.units) == ((), (CUBIN_90,))


def test_cubin_of_cuda_12_has_its_architecture_elsewhere() -> None:
    header = bytearray(CUBIN_90)
    header[7:9] = b"\x33\x07"  # the identification and flags that ptxas 12.4 wrote for sm_90
    header[48:52] = b"\x5a\x05\x4b\x00"
    assert read_image(bytes(header)).cubins[0].sm == 90


@pytest.mark.parametrize("name", ["dot.fatbin", "dot.zstd.fatbin"])
def test_fatbin_with_and_without_compression_holds_the_same(name: str) -> None:
    data = (DATA / name).read_bytes()
    image = read_image(data)
    assert image.kind is ImageKind.FATBIN
    assert [cubin.sm for cubin in image.cubins] == [75, 90]
    assert image.cubins[1].data == CUBIN_90
    assert [instructions(ptx) for ptx in image.ptx] == [instructions(DOT_PTX.decode())]
    assert image.units == (data,)


def test_lz4_fatbin_gives_the_ptx_of_the_oldest_architecture() -> None:
    image = read_image((DATA / "dot.lz4.fatbin").read_bytes())
    assert image.cubins == ()
    assert [instructions(ptx) for ptx in image.ptx] == [instructions(DOT_PTX.decode())]


def test_shared_object_has_a_fatbin_a_source_file() -> None:
    data = (DATA / "two_units.so").read_bytes()
    image = read_image(data)
    assert image.kind is ImageKind.SHARED_OBJECT
    assert [entries(ptx) for ptx in image.ptx] == [["prodKern", "sumKern"], ["histogramKern"]]
    assert [cubin.sm for cubin in image.cubins] == [90, 90]
    assert image.cubins[0].data == CUBIN_90
    assert len(image.units) == 2
    assert all(unit in data and read_image(unit).kind is ImageKind.FATBIN for unit in image.units)


HOST_FUNCTIONS = {
    "convention.so": (ImageKind.WRAPPER, ("crash", "give", "record"), 0),
    "incomplete.so": (ImageKind.WRAPPER, ("crash", "give", "needs_more", "record"), 0),
    "mixed.so": (ImageKind.SHARED_OBJECT, ("crash", "give", "record"), 1),
}
"""As ``convention.c`` declares them."""


@pytest.mark.parametrize("name", HOST_FUNCTIONS)
def test_exported_functions_of_a_shared_object(name: str) -> None:
    image = read_image((DATA / name).read_bytes())
    assert (image.kind, image.host_functions, len(image.units)) == HOST_FUNCTIONS[name]


def symbols_at() -> int:
    """Where the first symbol of ``convention.so`` stands, the one behind the empty one."""
    (sections_at,), (count,) = struct.unpack_from("<Q", CONVENTION, 40), struct.unpack_from("<H", CONVENTION, 60)
    headers = (struct.unpack_from("<IIQQQQIIQQ", CONVENTION, sections_at + 64 * index) for index in range(count))
    return next(header[4] for header in headers if header[1] == 11) + 24


def with_names_at(position: int) -> bytes:
    """``convention.so``, the names of whose symbols all begin at ``position``."""
    data = bytearray(CONVENTION)
    for index in range(4):
        struct.pack_into("<I", data, symbols_at() + 24 * index, position)
    return bytes(data)


def fatbin_of(kind: int, payload: bytes, flags: int, size: int) -> bytes:
    """A fatbin of one entry, with the layout that nvcc's have."""
    padded = payload.ljust(-(-len(payload) // 8) * 8, b"\0")
    entry = struct.pack("<HHIQIIHHIIIQQQ", kind, 0x101, 64, len(padded), len(payload), 0, 0, 9, 75, 0, 0, flags, 0, size) + padded
    return struct.pack("<4sHHQ", b"\x50\xed\x55\xba", 1, 16, len(entry)) + entry


def patched(data: bytes, position: int, format_: str, number: int) -> bytes:
    """``data`` with a number of the header of its first entry, or of its own, replaced."""
    changed = bytearray(data)
    struct.pack_into(format_, changed, position, number)
    return bytes(changed)


def with_symbol_table_of(size: int) -> bytes:
    """``convention.so``, whose table of dynamic symbols has so many bytes."""
    (sections_at,) = struct.unpack_from("<Q", CONVENTION, 40)
    header = next(at for at in range(sections_at, len(CONVENTION), 64) if struct.unpack_from("<I", CONVENTION, at + 4)[0] == 11)
    return patched(CONVENTION, header + 32, "<Q", size)


def test_fatbins_with_zeros_between() -> None:
    one = fatbin_of(1, LZ4_PTX, 0x2011, len(DOT_PTX))
    image = read_image(one + bytes(16) + one + bytes(4))
    assert image.ptx == (DOT_PTX.decode(),) * 2
    assert image.units == (one, one)


def test_fatbin_made_by_hand() -> None:
    assert read_image(fatbin_of(1, LZ4_PTX, 0x2011, len(DOT_PTX))).ptx == (DOT_PTX.decode(),)


LZ4_FATBIN = fatbin_of(1, LZ4_PTX, 0x2011, len(DOT_PTX))
ZSTD_FRAME_OF_A_TERABYTE = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + b"\x01\x00\x00"

BAD = {
    "empty": (b"", "empty file"),
    "text": (b"Hello, this is not PTX.\n", "text that is not PTX: PTX begins with a .version directive"),
    "source": ((KERNELS / "dot.cu").read_bytes(), "CUDA C++ source, to be compiled to PTX first"),
    "binary": (bytes(range(128, 256)), "neither PTX text nor an ELF file nor a fatbin"),
    "zeros": (bytes(64), "text that is not PTX"),
    "only a version": (b".version 9.0\n", "truncated PTX: it has no .target directive"),
    "only a preamble": (DOT_PTX[: DOT_PTX.index(b".visible")], "defines no kernel"),
    "cut in the parameters": (DOT_PTX[: DOT_PTX.index(b"sumKern_param_1")], "truncated PTX: the '(' of line 58 is never closed"),
    "cut in a body": (DOT_PTX[:-40], "truncated PTX: the '{' of line"),
    "one brace too many": (DOT_PTX + b"}\n", "malformed PTX: line 123 closes a '}' that was not opened"),
    "brace in a comment": (DOT_PTX.replace(b"\n}", b"\n// }"), "truncated PTX: the '{' of line"),
    "host program": (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 0, 0, 64, 56, 0, 64, 0, 0),
                     "ELF file without GPU code: it has no .nv_fatbin section"),
    "function without a name": (with_names_at(0), "malformed ELF: the name of a function would be at byte 0 of"),
    "function with a name elsewhere": (with_names_at(5000), "malformed ELF: the name of a function would be at byte 5000 of"),
    "cut wrapper": (CONVENTION[:-1], f"truncated ELF: section headers would end at byte {len(CONVENTION)} of"),
    "32-bit ELF": (b"\x7fELF\x01\x01" + bytes(100), "not 64-bit little-endian"),
    "cut in the ELF header": (CUBIN_90[:40], "truncated ELF: 40 bytes, less than its header of 64"),
    "cut cubin": (CUBIN_90[:-1], f"truncated ELF: program headers would end at byte {len(CUBIN_90)} of {len(CUBIN_90) - 1}"),
    "cut shared object": ((DATA / "two_units.so").read_bytes()[:20000], "truncated ELF: section headers would end at byte"),
    "relocatable cubin": ((DATA / "relocatable.cubin").read_bytes(), "relocatable device code only, which is not linked"),
    "relocatable object": ((DATA / "relocatable.so").read_bytes(), "relocatable device code only, which is not linked"),
    "cut in the fatbin header": ((DATA / "dot.fatbin").read_bytes()[:9], "truncated fatbin: 9 bytes at byte 0"),
    "cut fatbin": ((DATA / "dot.zstd.fatbin").read_bytes()[:-8], "truncated fatbin: would end at byte 3640 of 3632"),
    "fatbin and rubbish": ((DATA / "dot.fatbin").read_bytes() + b"x" * 16, "malformed fatbin: what is at byte 13904"),
    "fatbin of another version": (b"\x50\xed\x55\xba\x02\x00\x10\x00" + bytes(8), "fatbin of version 2"),
    "symbols cut short": (with_symbol_table_of(25), "malformed ELF: a symbol table of 25 bytes, which is not a multiple of 24"),
    "cut in an entry's header": (b"\x50\xed\x55\xba\x01\x00\x10\x00" + struct.pack("<QQ", 8, 0), "entry 0 has 8 bytes, less"),
    "entry's header too short": (patched(LZ4_FATBIN, 16 + 4, "<I", 63), "malformed fatbin: entry 0 does not fit"),
    "entry too long": (patched(LZ4_FATBIN, 16 + 8, "<Q", 1 << 20), "malformed fatbin: entry 0 does not fit"),
    "more compressed than there is": (patched(LZ4_FATBIN, 16 + 16, "<I", 1 << 20), "malformed fatbin: entry 0 does not fit"),
    "header of a fatbin too short": (patched(LZ4_FATBIN, 6, "<H", 15), "fatbin of version 1 with a header of 15 bytes"),
    "empty fatbin": (b"\x50\xed\x55\xba\x01\x00\x10\x00" + bytes(8), "fatbin that holds neither PTX nor a cubin"),
    "fatbin of IR only": (fatbin_of(8, b"BC\xc0\xde", 0x11, 0), "fatbin that holds neither PTX nor a cubin"),
    "cut cubin in a fatbin": (fatbin_of(2, CUBIN_90[:-16], 0x11, 0), "truncated ELF"),
    "cut PTX in a fatbin": (fatbin_of(1, DOT_PTX[:-40], 0x11, 0), "truncated PTX"),
    "damaged zstd": (fatbin_of(1, b"\x28\xb5\x2f\xfd" + bytes(20), 0x8011, 20), "damaged fatbin: entry 0 does not decompress"),
    "damaged LZ4": (fatbin_of(1, b"\xff" * 20, 0x2011, 4000), "damaged fatbin: entry 0 does not decompress"),
    "wrong size": (fatbin_of(1, LZ4_PTX, 0x2011, len(DOT_PTX) + 1), "does not decompress to"),
    "a terabyte": (fatbin_of(1, ZSTD_FRAME_OF_A_TERABYTE, 0x8011, 1 << 40), "would take 1099511627776 bytes uncompressed"),
    "a hidden terabyte": (fatbin_of(1, ZSTD_FRAME_OF_A_TERABYTE, 0x8011, 1 << 20), "does not decompress to the 1048576 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_by_name(case: str) -> None:
    data, message = BAD[case]
    with pytest.raises(UnsupportedLibrary) as error:
        read_image(data)
    assert message in str(error.value)


def read_or_refused(data: bytes) -> bool:
    """Whether there is something in the library, or a reason why it is none."""
    try:
        image = read_image(data)
    except UnsupportedLibrary as error:
        return bool(str(error))
    return bool(image.units or image.host_functions)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"\x7fELF", b"\x7fELF\x02\x01", b"\x50\xed\x55\xba\x01\x00\x10\x00", b".version "]),
)
@example(b'"' + b"\\" * 100_000, b".version 9.0\n.target sm_75\n")
@example(b"/*" * 100_000, b".version 9.0\n.target sm_75\n")
@example(b"/*" * 100_000, b"")
@example(b" /" * 100_000, b"")
@example(b"(" * 100_000, b".version 9.0\n.target sm_75\n")
def test_any_bytes_are_read_or_refused(data: bytes, start: bytes) -> None:
    assert read_or_refused(start + data)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_a_damaged_library_is_read_or_refused(data: st.DataObject) -> None:
    library = bytearray(data.draw(st.sampled_from(FILES)).read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        size = data.draw(st.sampled_from([1, 2, 4, 8]))
        # Headers are where damage does the most, so half of it goes there.
        position = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(library) - 8)))
        library[position : position + size] = data.draw(
            st.one_of(st.binary(min_size=size, max_size=size), st.just(b"\xff" * size))
        )
    end = data.draw(st.one_of(st.just(len(library)), st.integers(0, len(library))))
    assert read_or_refused(bytes(library[:end]))
