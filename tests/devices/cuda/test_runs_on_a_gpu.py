"""Runs, transfers and compiled code on a real GPU."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kaas_core.request import Access
from kaasd.devices.base import Awaited, BufferRef, Launch
from kaasd.devices.cuda.buffers import CudaBuffer
from kaasd.devices.cuda.device import CudaDevice
from kaasd.devices.cuda.mapped import PIECE_BYTES
from kaasd.devices.cuda.module import CudaModule
from tests.conformance.launching import library, u64

pytestmark = pytest.mark.gpu

N = 1024
BYTES = 4 * N


@pytest.fixture(scope="module", params=[1, 0, None], ids=["second run", "at once", "never"])
def device(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    """A device by when it makes graphs."""
    with closing(CudaDevice(0, plain_starts=request.param)) as opened:
        yield opened


@pytest.fixture
def dot(device: CudaDevice) -> Iterator[CudaModule]:
    with closing(device.load(library("dot"))) as module:
        yield module


def buffers(device: CudaDevice, number: int, size: int = BYTES) -> list[CudaBuffer]:
    return [device.allocate(size) for _ in range(number)]


def product(module: CudaModule, a: CudaBuffer, b: CudaBuffer, p: CudaBuffer, n: int = N) -> Launch:
    uses = zip("abp", (a, b, p), (Access.INPUT, Access.INPUT, Access.OUTPUT), strict=True)
    arguments = tuple(BufferRef(name, buffer, access) for name, buffer, access in uses)
    return Launch(module.kernels["prodKern"], (-(-n // 256), 1, 1), (256, 1, 1), 0, (u64(n), *arguments))


def numbers(seed: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, n, dtype=np.uint32)


def finish(*awaited: Awaited) -> None:
    """Poll until all are done."""
    left: Sequence[Awaited] = awaited
    while left:
        left = [each for each in left if not each.done()]


@pytest.mark.parametrize("iterations", [1, 3, 300, 1499])
def test_a_run_can_be_repeated(iterations: int, device: CudaDevice, dot: CudaModule) -> None:
    x, m = buffers(device, 2)
    with closing(device.prepare([product(dot, x, m, x)], iterations, uploads=[x, m], downloads=[x])) as run:
        for seed in range(5):
            run.uploads[0][:] = memoryview(numbers(seed)).cast("B")
            run.uploads[1][:] = memoryview(numbers(seed + 100)).cast("B")
            run.start()
            finish(run)
            expected = numbers(seed)
            for _ in range(iterations):
                expected = expected * numbers(seed + 100)
            assert np.array_equal(np.frombuffer(run.downloads[0], np.uint32), expected)


def test_buffers_may_move_between_runs(device: CudaDevice, dot: CudaModule) -> None:
    *inputs, p = buffers(device, 5)
    for index, buffer in enumerate(inputs):
        buffer.write(numbers(index).tobytes())
    with closing(device.prepare([product(dot, inputs[0], inputs[1], p)] * 3, 2, downloads=[p])) as run:
        for a, b in ((0, 1), (0, 1), (2, 1), (2, 3), (3, 3), (0, 1)):
            run.update([product(dot, inputs[a], inputs[b], p)] * 3)
            run.start()
            run.wait()
            assert run.done()
            assert np.array_equal(np.frombuffer(run.downloads[0], np.uint32), numbers(a) * numbers(b))


def test_zeros_and_small_copies_of_any_number_and_size(device: CudaDevice, dot: CudaModule) -> None:
    sizes = [1, 3, 15, 16, 17, 255, 4096, 5001, 65_536, *range(100, 170)]
    sources = [device.allocate(size) for size in sizes]
    zeros = [device.allocate(size) for size in [*sizes, 50_000_003]]
    for buffer in zeros:
        buffer.write(b"\xff" * buffer.size_bytes)
    a, b, p = buffers(device, 3)
    launches = [product(dot, a, b, p)]
    with closing(device.prepare(launches, 1, uploads=sources, zeroed=zeros, downloads=sources)) as run:
        for seed in range(3):
            contents = [np.random.default_rng(seed).bytes(size) for size in sizes]
            for upload, content in zip(run.uploads, contents, strict=True):
                upload[:] = content
            run.start()
            finish(run)
            assert [bytes(view) for view in run.downloads] == contents
            for buffer in zeros:
                back = bytearray(buffer.size_bytes)
                buffer.read(back)
                assert not any(back)
                buffer.write(b"\xff" * buffer.size_bytes)


def test_runs_go_on_at_once_and_ends_are_seen_by_polling(device: CudaDevice, dot: CudaModule) -> None:
    runs = []
    for seed in range(20):
        a, b, p = buffers(device, 3)
        run = device.prepare([product(dot, a, b, p)], 50, uploads=[a, b], downloads=[p])
        run.uploads[0][:] = numbers(seed).tobytes()
        run.uploads[1][:] = numbers(seed + 1).tobytes()
        runs.append(run)
    for _ in range(3):
        for run in runs:
            run.start()
        finish(*runs)
        for seed, run in enumerate(runs):
            assert np.array_equal(np.frombuffer(run.downloads[0], np.uint32), numbers(seed) * numbers(seed + 1))
    for run in runs:
        run.close()


def test_warming_makes_the_graph(device: CudaDevice, dot: CudaModule) -> None:
    a, b, p = buffers(device, 3)
    with closing(device.prepare([product(dot, a, b, p)] * 5, 1, uploads=[a, b], downloads=[p])) as run:
        run.warm()
        run.uploads[0][:] = run.uploads[1][:] = numbers(1).tobytes()
        run.start()
        finish(run)
        assert np.array_equal(np.frombuffer(run.downloads[0], np.uint32), numbers(1) ** 2)


@dataclass(frozen=True)
class File:
    path: str
    address: int
    size_bytes: int
    grows: bool = True


@pytest.mark.parametrize("size", [5000, PIECE_BYTES + 12_345, 3 * PIECE_BYTES])
def test_uploads_from_a_mapped_file_that_grows(size: int, device: CudaDevice, tmp_path: Path) -> None:
    path = tmp_path / "data"
    capacity = 8 * PIECE_BYTES
    content = np.random.default_rng(size).bytes(size + 8192)
    with path.open("w+b") as file:
        file.truncate(capacity)
        mapping = mmap.mmap(file.fileno(), capacity, mmap.MAP_SHARED, mmap.PROT_READ)
        view = memoryview(mapping)
        mapped = File(str(path), np.frombuffer(view, np.uint8).ctypes.data, capacity)
        length = mmap.PAGESIZE
        file.truncate(length)
        for end in (4000, len(content)):
            file.truncate(-(-end // mmap.PAGESIZE) * mmap.PAGESIZE)
            file.seek(0)
            file.write(content[:end])
            file.flush()
            for start in (0, 17, 3999):
                taken = min(end - start, size)
                if taken <= 0:
                    continue
                with closing(device.allocate(taken)) as buffer:
                    transfer = device.upload(
                        buffer, [view[start : start + taken // 2], view[start + taken // 2 : start + taken]], mapped
                    )
                    finish(transfer)
                    download = device.download(buffer)
                    finish(download)
                    assert download.view == content[start : start + taken]
                    download.close()
        device.unmap()
        view.release()
        mapping.close()


def test_an_upload_longer_than_its_buffer(device: CudaDevice) -> None:
    with closing(device.allocate(10)) as buffer, pytest.raises(ValueError, match="of a buffer of 10"):
        device.upload(buffer, [memoryview(b"123456"), memoryview(b"78901")])


def test_a_run_waits_for_the_transfers_before_it(device: CudaDevice, dot: CudaModule) -> None:
    n = 8 << 20
    a, b, p = buffers(device, 3, 4 * n)
    first, second = numbers(1, n), numbers(2, n)
    with closing(device.prepare([product(dot, a, b, p, n)], 1)) as run:
        transfers = [device.upload(buffer, [memoryview(value).cast("B")]) for buffer, value in ((a, first), (b, second))]
        run.start(after=transfers)
        finish(*transfers, run)
        download = device.download(p)
        finish(download)
        assert np.array_equal(np.frombuffer(download.view, np.uint32), first * second)


COMPILE = """
import sys
from pathlib import Path
from kaasd.devices.cuda.device import CudaDevice
from tests.conformance.launching import library
device = CudaDevice(0, code_cache=Path(sys.argv[1]))
device.load(library("matmul") + sys.argv[2].encode())
device.close()
"""


def test_compiled_code_is_kept_for_the_next_process(tmp_path: Path) -> None:
    def kept_bytes_after_loading(comment: str) -> int:
        root = Path(__file__).parents[3]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_CACHE")}
        subprocess.run([sys.executable, "-c", COMPILE, str(tmp_path), comment], check=True, cwd=root, env=environ, timeout=100)
        return sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())

    first = kept_bytes_after_loading("\n// one\n")
    assert first > 0
    assert kept_bytes_after_loading("\n// one\n") == first
    assert kept_bytes_after_loading("\n// another\n") > first


FAULT_IN_A_REPLAY = """
import json
from tests.devices.cuda.test_runs_on_a_gpu import *
from tests.conformance.launching import u32
from kaasd.devices.base import KernelFault
device = CudaDevice(0, plain_starts=1)
module = device.load(library("faults"))
value, other = device.allocate(4), device.allocate(4)
check = Launch(module.kernels["expectKern"], (1, 1, 1), (1, 1, 1), 0, (u64(1), u32(7), BufferRef("value", value, Access.INPUT)))
runs = [device.prepare([check] * launches, 1, uploads=[value]) for launches in LAUNCHES]
def begin(number):
    for run in runs:
        run.uploads[0][:] = number.to_bytes(4, "little")
        run.start()
for _ in range(3):
    begin(7)
    finish(*runs)
begin(8)
answers = []
for run in runs:
    try:
        finish(run)
    except KernelFault as fault:
        answers.append([fault.fault, fault.launch_index, fault.device_lost, fault.suspects])
device.close()
print(json.dumps(answers))
"""


@pytest.mark.parametrize(
    ("launches", "expected"),
    [
        ([1], [["CUDA_ERROR_LAUNCH_FAILED", 0, True, 1]]),
        ([3], [["CUDA_ERROR_LAUNCH_FAILED", -1, True, 1]]),
        ([1, 1, 2], [["CUDA_ERROR_LAUNCH_FAILED", index, True, 3] for index in (0, 0, -1)]),
    ],
)
def test_a_fault_in_a_replay_is_found_by_polling(launches: list[int], expected: list[object]) -> None:
    root = Path(__file__).parents[3]
    code = FAULT_IN_A_REPLAY.replace("LAUNCHES", repr(launches))
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=100)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == expected
