"""What only a GPU does. What every device does is in ``tests/conformance``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kaasd.devices.base import KernelFault, OutOfMemory
from kaasd.devices.cuda.device import CudaDevice
from kaasd.devices.registry import available
from kaasd.libraries import UnsupportedLibrary
from tests.conformance.launching import DATA, Call, execute, inp, library, out, tmp, u32, u64

pytestmark = pytest.mark.gpu

WORDS = {"a": np.arange(64, dtype=np.uint32), "c": np.zeros(1, np.uint32)}
SUM = Call("sumKern", 1, 32, [inp("a"), out("c")])


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    with closing(CudaDevice(0)) as opened:
        yield opened


def test_auto_takes_the_gpus() -> None:
    assert available(["auto"])[0] == "cuda:0"


def test_ptx_newer_than_the_driver(device: CudaDevice) -> None:
    with pytest.raises(
        UnsupportedLibrary, match=r"PTX version 99\.9 is newer than this driver: its CUDA \d+\.\d takes PTX up to version \d"
    ):
        device.load(library("dot").replace(b".version 9.0", b".version 99.9"))


def test_the_compilers_own_message_is_passed_on(device: CudaDevice) -> None:
    with pytest.raises(UnsupportedLibrary, match=r"CUDA_ERROR_INVALID_PTX.*line \d+; error.*bogus"):
        device.load(library("dot").replace(b"mul.lo.s32", b"mul.bogus.s32", 1))


def test_a_cubin_for_another_gpu(device: CudaDevice) -> None:
    major, minor = device.properties.compute_capability
    with pytest.raises(
        UnsupportedLibrary, match=rf"no code for this GPU of compute capability {major}\.{minor}: cubins for sm_75, no PTX"
    ):
        device.load((DATA / "histogram.sm_75.cubin").read_bytes())


def test_a_launch_that_the_driver_refuses_loses_nothing(device: CudaDevice) -> None:
    code = library("dot").replace(b"sumKern_param_1\n)", b"sumKern_param_1\n)\n.reqntid 64, 1, 1")
    other = Call("prodKern", 1, 32, [u64(1), inp("a"), inp("a"), tmp("c")])
    with pytest.raises(KernelFault, match="sumKern could not be launched: cuLaunchKernel: CUDA_ERROR") as fault:
        execute(device, code, [other, SUM], WORDS)
    assert (fault.value.launch_index, fault.value.device_lost) == (1, False)
    assert execute(device, library("dot"), [SUM], WORDS)["c"][0] == 2016


def test_out_of_memory_says_how_much_is_in_use(device: CudaDevice) -> None:
    with (
        closing(device.allocate(3 << 20)),
        pytest.raises(OutOfMemory, match=r"asked of cuda:0; 3[12]\d{5} are in use here and \d+ of \d+ free"),
    ):
        device.allocate(1 << 50)


def test_a_device_opens_again_after_it_was_closed_with_all_it_holds(device: CudaDevice) -> None:
    other = CudaDevice(0)
    module, buffer = other.load(library("dot")), other.allocate(100)
    other.close()
    other.close()
    buffer.close()
    module.close()
    with closing(CudaDevice(0)) as again:
        assert execute(again, library("dot"), [SUM], WORDS)["c"][0] == 2016
    assert execute(device, library("dot"), [SUM], WORDS)["c"][0] == 2016


FAULT = """
import json, sys
from tests.conformance.launching import *
from kaasd.devices.base import KernelFault
from kaasd.devices.registry import open_device
words = {"a": np.zeros(64, np.uint32)}
harmless = Call("writeAtKern", 1, 32, [u64(3), out("a")])
late = Call("expectKern", 1, 1, [u64(1), u32(0), inp("a")])
becomes_one = Call("writeAtKern", 1, 32, [u64(0), out("a")])
device = open_device("cuda:0")
try:
    %s
except KernelFault as fault:
    device.close()
    print(json.dumps([fault.fault, fault.launch_index, fault.device_lost]))
"""


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (
            'execute(device, library("assertion"), [Call("assertKern", 1, 32, [u64(32), u32(5), inp("a")])], words)',
            ["CUDA_ERROR_ASSERT", 0, True],
        ),
        # Past the launches that are marked, which launch it was is not known.
        (
            'execute(device, library("faults"), [harmless] * 70 + [Call("writeAtKern", 1, 1, [u64(1 << 40), out("a")])], words)',
            ["CUDA_ERROR_ILLEGAL_ADDRESS", -1, True],
        ),
    ],
    ids=["assert", "unmarked"],
)
def test_faults_of_a_gpu_only(run: str, expected: list[object]) -> None:
    root = Path(__file__).parents[3]
    child = subprocess.run([sys.executable, "-c", FAULT % run], capture_output=True, text=True, cwd=root, timeout=100)
    assert json.loads(child.stdout) == expected, child.stderr


def test_a_run_of_many_launches(device: CudaDevice) -> None:
    n = 512
    a, b = np.eye(n, dtype=np.float32) * 2, np.ones(n)
    arguments = [inp("a"), inp("b")]
    results = execute(
        device,
        library("jacobi"),
        [
            Call("jacobiKern", 64, 256, [u32(n), u32(0), *arguments, out("x"), out("y"), out("r")], 8 * n),
            Call("jacobiKern", 64, 256, [u32(n), u32(1), *arguments, out("y"), out("x"), out("r")], 8 * n),
        ],
        {"a": a, "b": b, "x": np.zeros(n), "y": np.zeros(n), "r": np.zeros(2)},
        iterations=1500,
    )
    assert np.array_equal(results["x"], np.full(n, 0.5))
    assert np.array_equal(results["r"], [0, 0])
