"""Kernels that use the heap of device code are refused by name on every device; others of the library run."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaas_client import Client, Kernel, Request, inout, out, u32
from kaas_core.errors import InvalidLibraryError

DATA = Path(__file__).parent / "data"
FILES = ("heap.ptx", "heap.fatbin", "heap.sm_90.cubin", "heap_linked.sm_90.cubin")
USERS = {"takeKern": "malloc", "newKern": "malloc", "throughKern": "malloc", "giveKern": "free"}


@pytest.fixture(params=FILES)
def library(request: pytest.FixtureRequest, kaas: Client, device_name: str) -> str:
    """The library in each form, uploaded; on the emulated device only forms with PTX, the only ones that it takes."""
    if request.param.endswith(".cubin") and not device_name.startswith("cuda"):
        with pytest.raises(InvalidLibraryError, match="only machine code"):
            kaas.upload(DATA / request.param)
        return kaas.upload(DATA / "heap.ptx")
    return kaas.upload(DATA / request.param)


def kernel(library: str, name: str) -> Kernel:
    arguments = [u32(1)] if name == "throughKern" else []
    use = inout if name in ("giveKern", "newKern") else out
    return Kernel(library, name, grid=1, block=1, args=[*arguments, use("x", 4)])


@pytest.mark.parametrize("name", USERS)
def test_a_kernel_that_uses_the_heap_is_refused(kaas: Client, library: str, name: str) -> None:
    with pytest.raises(InvalidLibraryError) as caught:
        kaas.submit(Request([kernel(library, name)]), inputs={"x": b"\0" * 4} if name in ("giveKern", "newKern") else {})
    message = caught.value.message
    assert message.startswith(
        f"kernels[0].name: kernel '{name}' of library {library} calls {USERS[name]}: the heap of device code"
    )
    assert caught.value.metadata["kernel"] == name
    assert caught.value.metadata["library"] == library


def test_it_is_refused_when_it_is_registered(kaas: Client, library: str) -> None:
    with pytest.raises(InvalidLibraryError, match=r"'takeKern' of library .* calls malloc"):
        kaas.register("takes", Request([kernel(library, "takeKern")]))


@pytest.mark.parametrize("name", ["plainKern", "printKern"])
def test_other_kernels_of_the_library_run(kaas: Client, library: str, name: str) -> None:
    for _ in range(3):
        assert kaas.submit(Request([kernel(library, name)]), returns=["x"]).array("x", "u4").tolist() == [7]


def test_a_request_with_one_such_kernel_runs_none(kaas: Client, library: str) -> None:
    with pytest.raises(InvalidLibraryError, match=r"^kernels\[1\]\.name: kernel 'takeKern'"):
        kaas.submit(Request([kernel(library, "plainKern"), kernel(library, "takeKern")]))
