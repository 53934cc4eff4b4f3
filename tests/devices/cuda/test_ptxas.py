"""What ptxas makes of libraries, with no GPU: by the real ptxas, in the real compiler's process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from kaas.worker.v1 import compiler_pb2
from kaas_core.errors import InvalidLibraryError
from kaasd.compiler.compiler import Compilation, Compiler
from kaasd.devices.cuda import module, ptxas
from kaasd.devices.cuda.device import CudaDevice
from kaasd.devices.cuda.driver import Check
from kaasd.libraries import UnsupportedLibrary, elf
from kaasd.libraries.registry import ResolvedLibrary
from kaasd.libraries.variables import forms
from tests.conformance.launching import library
from tests.devices.cuda.fake_driver import FakeDriver
from tests.faults.support import children, wait_until
from tests.faults.test_compiler import slow_ptx

DATA = Path(__file__).parents[2] / "libraries/data"
HOPPER = (9, 0)
NEWER = b".version 99.9\n.target sm_90\n.address_size 64\n.visible .entry k() { ret; }\n"
WRITES = b""".version 8.0
.target sm_90
.address_size 64
.global .u32 counter;
.visible .entry count() { .reg .b32 %r; atom.global.add.u32 %r, [counter], 1; ret; }
"""


def target(capability: tuple[int, int] = HOPPER) -> str:
    return ptxas.target_text(capability, 13)


def made_of(image: bytes, capability: tuple[int, int] = HOPPER) -> dict[bytes, bytes]:
    return ptxas.compiled_codes(ptxas.PtxasCompiler(target(capability)).describe(image))


def resolved(data: bytes) -> ResolvedLibrary:
    return ResolvedLibrary("x", f"sha256:{sha256(data).hexdigest()}", data, None)


@pytest.mark.parametrize("capability", [(7, 5), (9, 0), (12, 0)])
def test_ptx_becomes_a_cubin_for_the_gpu(capability: tuple[int, int]) -> None:
    text = library("dot")
    (cubin,) = made_of(text, capability).values()
    read = elf.read_elf(cubin)
    assert (read.is_cubin, read.sm) == (True, 10 * capability[0] + capability[1])
    assert ptxas.is_to_compile(text, capability)


def test_variables_that_kernels_write_can_be_found_by_name() -> None:
    ((digest, cubin),) = made_of(WRITES).items()
    (form,) = forms(WRITES + b"\0", 90)
    assert digest == sha256(form.code).digest()
    assert form.variables == {"counter"} <= set(elf.read_elf(cubin).variables)


def test_what_is_left_to_the_driver() -> None:
    """Newer PTX, and PTX for other GPUs: the driver says what is wrong, or takes it."""
    known = NEWER.replace(b"99.9", b"8.8")
    for text in (NEWER, known.replace(b"sm_90", b"sm_100"), known.replace(b"ret", b"foo")):
        assert ptxas.is_to_compile(text, HOPPER)
        assert not made_of(text)


def test_code_for_one_architecture() -> None:
    text = NEWER.replace(b"99.9", b"8.0").replace(b"sm_90", b"sm_90a")
    assert made_of(text)
    assert not made_of(text, (12, 0))


@pytest.mark.parametrize("name", ["dot.fatbin", "dot.lz4.fatbin"])
def test_of_a_fatbin_what_has_no_machine_code_is_compiled(name: str) -> None:
    data = (DATA / name).read_bytes()
    made = {capability: made_of(data, capability) for capability in (HOPPER, (12, 0))}
    for capability, codes in made.items():
        assert bool(codes) == ptxas.is_to_compile(data, capability)
    assert made[12, 0]


def test_machine_code_is_not_compiled() -> None:
    (cubin,) = made_of(library("dot")).values()
    assert not ptxas.is_to_compile(cubin, HOPPER)
    with pytest.raises(UnsupportedLibrary):
        ptxas.is_to_compile(b"", HOPPER)


def test_a_driver_of_an_older_cuda_compiles_by_itself() -> None:
    assert ptxas.target_text(HOPPER, 12) == ""
    assert ptxas.target_text(HOPPER, 14) == target() != ""


def test_without_ptxas_the_driver_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptxas, "find", lambda: None)
    assert target() == ""


def test_the_driver_loads_what_was_made_in_place_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver(monkeypatch)
    loaded: list[bytes] = []
    load = module.LoadedCode.load

    def note(code: bytes, check: Check) -> module.LoadedCode:
        loaded.append(code)
        return load(code, check)

    monkeypatch.setattr(module.LoadedCode, "load", note)
    text = library("dot")
    description = ptxas.PtxasCompiler(target()).describe(text)
    with closing(CudaDevice(0)) as device:
        loaded.clear()
        device.load(text, description)
        device.load(text)
    assert loaded == [*ptxas.compiled_codes(description).values(), text + b"\0"]


class TestInAProcessOfItsOwn:
    @pytest.fixture
    def compiler(self) -> Iterator[Compiler]:
        with closing(Compiler("cuda", target(), max_time_s=5.0)) as compiler:
            yield compiler

    def test_it_answers(self, compiler: Compiler) -> None:
        compilation = compiler.start(resolved(library("dot")))
        compilation.wait()
        described = compiler_pb2.CompiledLibrary.FromString(compilation.result())
        assert len(ptxas.compiled_codes(described.description)) == 1

    def test_what_takes_too_long_is_ended_and_others_go_on(self, compiler: Compiler) -> None:
        compilation, processes = self.begun(compiler)
        compilation.wait()
        with pytest.raises(InvalidLibraryError, match="takes longer to compile than this server allows, 5 s"):
            compilation.result()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))
        self.test_it_answers(compiler)

    def test_ptxas_ends_with_a_compiler_that_is_killed(self, compiler: Compiler) -> None:
        _, processes = self.begun(compiler)
        compiling = Path(f"/proc/{processes[1]}")
        os.kill(processes[0], signal.SIGKILL)
        wait_until(lambda: not compiling.exists())
        assert not compiling.exists()

    def begun(self, compiler: Compiler) -> tuple[Compilation, list[int]]:
        """Have something compiled that takes long; return it, and the compiler's process with that of ptxas."""
        before = children(os.getpid())
        compilation = compiler.start(resolved(slow_ptx(100_000).encode()))
        processes: list[int] = []

        def has_begun() -> bool:
            processes[:] = [each for pid in children(os.getpid()) - before for each in (pid, *children(pid))]
            return len(processes) == 2

        wait_until(has_begun)
        return compilation, processes
