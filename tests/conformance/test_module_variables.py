"""Module variables start each request as the library initialises them, through the real daemon, on every device."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from kaas_client import Client, Kernel, Request, inout, inp, out, tmp, u32
from kaas_core.errors import DeadlineExceededError, InvalidLibraryError, KaasError, KernelFaultError, UnavailableError

PTX = Path(__file__).parent / "data/variables.ptx"
CUBIN = Path(__file__).parent / "data/variables.sm_90.cubin"
N = 1024
SECRET = np.arange(1, N + 1, dtype=np.uint32)


@pytest.fixture
def variables(kaas: Client) -> str:
    """The library, uploaded."""
    return kaas.upload(PTX)


def count(library: str, buffer: str = "counts") -> Kernel:
    return Kernel(library, "countKern", grid=1, block=1, args=[out(buffer, 8, ephemeral=True)])


def leave(library: str, fault: int = 0) -> Kernel:
    return Kernel(library, "leaveKern", grid=N // 128, block=128, args=[u32(N), u32(fault), inp("secret", 4 * N, ephemeral=True)])


def peek(library: str) -> Kernel:
    return Kernel(library, "peekKern", grid=N // 128, block=128, args=[u32(N), out("seen", 4 * N, ephemeral=True)])


def submit(kaas: Client, request: Request, inputs: Mapping[str, np.ndarray], output: str) -> np.ndarray:
    """Return one output; where an earlier request took the device with it, once its worker is back."""
    while True:
        try:
            return kaas.submit(request, inputs=inputs, returns=[output]).array(output, "u4")
        except UnavailableError:
            continue


def seen(kaas: Client, library: str) -> np.ndarray:
    return submit(kaas, Request([peek(library)]), {}, "seen")


def test_what_a_request_leaves_is_gone(kaas: Client, variables: str) -> None:
    for _ in range(4):  # as a graph too, where there are any
        both = kaas.submit(Request([leave(variables), peek(variables)]), inputs={"secret": SECRET}, returns=["seen"])
        np.testing.assert_array_equal(both.array("seen", "u4"), SECRET)
        assert not seen(kaas, variables).any()


def test_initial_values(kaas: Client, variables: str) -> None:
    through = Kernel(variables, "throughKern", grid=1, block=1, args=[out("through", 4, ephemeral=True)])
    scale = Kernel(variables, "scaleKern", grid=1, block=32, args=[u32(6), inout("x", 24, ephemeral=True)])
    x = np.array([1, 2, 3, 4, 5, 6], np.float32)
    request = Request([count(variables), through, count(variables, "again"), scale])
    for _ in range(4):
        result = kaas.submit(request, inputs={"x": x}, returns=["counts", "through", "again", "x"])
        assert result.array("counts", "u4").tolist() == [41, 1]
        assert result.array("through", "u4").tolist() == [42]
        assert result.array("again", "u4").tolist() == [43, 2]
        np.testing.assert_array_equal(result.array("x", "f4"), x * np.float32([0.5, -2, 3, 0.5, -2, 3]))


@pytest.mark.parametrize("iterations", [1, 2, 100, 1000])
def test_they_persist_within_a_request(kaas: Client, variables: str, iterations: int) -> None:
    request = Request([count(variables), count(variables)], iterations=iterations)
    for _ in range(4):
        counts = kaas.submit(request, returns=["counts"]).array("counts", "u4")
        assert counts.tolist() == [40 + 2 * iterations, 2 * iterations]


def test_a_traced_request(kaas: Client, variables: str) -> None:
    for _ in range(2):
        result = kaas.submit(Request([count(variables)]), returns=["counts"], trace=True)
        assert result.array("counts", "u4").tolist() == [41, 1]


def test_after_a_fault(kaas: Client, variables: str) -> None:
    seen(kaas, variables)
    with pytest.raises(KernelFaultError):
        kaas.submit(Request([leave(variables, fault=1)]), inputs={"secret": SECRET})
    assert not seen(kaas, variables).any()


def test_after_the_library_was_deleted_and_uploaded_again(kaas: Client, variables: str) -> None:
    kaas.submit(Request([leave(variables)]), inputs={"secret": SECRET})
    kaas.delete_library(variables)
    assert kaas.upload(PTX) == variables
    assert not seen(kaas, variables).any()


def total(library: str, hang: int) -> Request:
    arguments = [u32(640), u32(hang), inp("x", 2560, ephemeral=True), tmp("partial", 40), out("total", 4, ephemeral=True)]
    return Request([Kernel(library, "totalKern", grid=10, block=32, args=arguments)])


def test_a_reduction_that_a_deadline_cut_off(kaas: Client, variables: str) -> None:
    inputs = {"x": np.ones(640, np.uint32)}
    assert submit(kaas, total(variables, 0), inputs, "total").tolist() == [640]
    with pytest.raises(DeadlineExceededError):
        kaas.submit(total(variables, 1), inputs=inputs, timeout=1)
    for _ in range(3):
        assert submit(kaas, total(variables, 0), inputs, "total").tolist() == [640]


def test_two_clients_at_once(address: str, kaas: Client, variables: str) -> None:
    """Each counts in a loop that is long enough for others to come between, and none sees another's counts."""
    wrong: list[object] = []
    failed: list[KaasError] = []

    def keep_counting(iterations: int) -> None:
        request = Request([count(variables)], iterations=iterations)
        with Client(address, timeout=90) as client:
            try:
                for _ in range(20):
                    counts = client.submit(request, returns=["counts"]).array("counts", "u4").tolist()
                    if counts != [40 + iterations, iterations]:
                        wrong.append(counts)
            except KaasError as error:
                failed.append(error)

    threads = [threading.Thread(target=keep_counting, args=[iterations]) for iterations in (2000, 2000, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, failed) == ([], [])


def test_what_is_printed_belongs_to_its_request(kaas: Client, variables: str, device_name: str) -> None:
    say = [Request([Kernel(variables, "sayKern", grid=1, block=1, args=[u32(number)])]) for number in (1, 2)]
    printed = [kaas.submit(request).printed for request in say * 2]
    if not device_name.startswith("cuda"):  # whose driver writes it to the worker's standard output
        assert printed == ["it is 1\n", "it is 2\n"] * 2


def test_a_library_of_machine_code(kaas: Client, device_name: str) -> None:
    if not device_name.startswith("cuda"):
        with pytest.raises(InvalidLibraryError, match="only machine code"):
            kaas.upload(CUBIN)
        return
    library = kaas.upload(CUBIN)
    for _ in range(4):
        both = kaas.submit(Request([leave(library), peek(library), count(library)]), inputs={"secret": SECRET}, returns=["seen"])
        np.testing.assert_array_equal(both.array("seen", "u4"), SECRET)
        assert not seen(kaas, library).any()
        assert kaas.submit(Request([count(library)]), returns=["counts"]).array("counts", "u4").tolist() == [41, 1]
