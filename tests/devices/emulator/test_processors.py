"""Code for other processors than this machine's: the plainest of its kind gives the same answers, and AArch64's code can be made.

``KAAS_EMULATOR_PROCESSOR=x86-64 make test`` runs all tests so.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from llvmlite import binding

from kaasd.devices.emulator.codegen import machine_code
from kaasd.devices.emulator.ptx.architecture import NEWEST_PTX, PtxSupport
from kaasd.devices.emulator.translation.translator import Translator

ROOT = Path(__file__).parents[3]
PLAINEST = {"x86_64": "x86-64", "aarch64": "generic"}[os.uname().machine]
"""Without F16C, AVX and FMA; without what came after ARMv8.0."""
SUITES = ["tests/devices/emulator/isa/test_half.py", "tests/devices/emulator/isa/test_texture.py", "tests/corpus/test_numeric.py"]
FILES = [
    *(ROOT / "tests/corpus/cuda" / f"{name}.ptx" for name in ("half", "bfloat", "fp8", "language")),
    ROOT / "tests/conformance/data/textures.ptx",
]
TRIPLES = {"x86-64": "x86_64-unknown-linux-gnu", "generic": "aarch64-unknown-linux-gnu"}


@pytest.mark.parametrize("suite", SUITES)
def test_the_plainest_processor_gives_the_same_answers(suite: str) -> None:
    environment = os.environ | {machine_code.PROCESSOR_VARIABLE: PLAINEST}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Have code made for a kind of processor."""
    name = str(request.param)
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(TRIPLES[name])
    machine = target.create_target_machine(cpu=name, features="", opt=2, reloc="default", codemodel="jitdefault")
    monkeypatch.setattr(machine_code, "_target", lambda: machine)
    monkeypatch.setattr(machine_code, "processor", lambda: (name, ""))
    yield name


@pytest.mark.parametrize("processor", TRIPLES, indirect=True)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_code_calls_the_c_library_alone(path: Path, processor: str) -> None:
    """What loading cannot find in a process would end it."""
    supplied = [ctypes.CDLL(None), ctypes.CDLL(ctypes.util.find_library("m"))]
    unit = next(iter(Translator(PtxSupport((9, 0), NEWEST_PTX), frozenset())._units(path.read_bytes())))
    for kernel in unit.kernels:
        content = unit.compile(kernel).object
        assert struct.unpack_from("<H", content, 18)[0] == {"x86-64": 62, "generic": 183}[processor]
        missing = [name for name in undefined(content) if not any(hasattr(library, name) for library in supplied)]
        assert missing == [], kernel


def undefined(content: bytes) -> list[str]:
    """Return the symbols that an ELF object file needs of others."""
    (start,), (size, count) = struct.unpack_from("<Q", content, 40), struct.unpack_from("<HH", content, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", content, start + size * index) for index in range(count)]
    names = []
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind == 2:  # SHT_SYMTAB
            texts = content[sections[link][4] :]
            for at in range(offset + 24, offset + length, 24):
                name, _, _, section = struct.unpack_from("<IBBH", content, at)
                if section == 0:
                    names.append(texts[name : texts.index(b"\0", name)].decode())
    return names
