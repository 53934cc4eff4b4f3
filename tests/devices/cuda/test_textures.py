"""Textures and surfaces of a run, with a driver that only counts: what is made, copied when, and freed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from cuda.bindings import driver

from kaas_core.request import Access
from kaas_core.texture import AddressMode, FilterMode, Texture
from kaasd.devices.base import BufferRef, KernelFault, Launch, OutOfMemory, TextureRef
from kaasd.devices.cuda.buffers import CudaBuffer
from kaasd.devices.cuda.device import CudaDevice
from kaasd.devices.cuda.kernel import CudaKernel, LoadedCode
from kaasd.devices.cuda.run import CudaRun
from kaasd.request.device_checks import KernelAttributes
from tests.devices.cuda.fake_driver import OTHER, OUT_OF_MEMORY, SUCCESS, FakeDriver

KERNEL = CudaKernel(driver.CUfunction(1), KernelAttributes("k", (8, 8), 0, 1024), LoadedCode("library", "module"))
IMAGE = Texture("unorm8", 4, (16, 8), 0, AddressMode.WRAP, FilterMode.LINEAR, True)
HELD = ("cuArray3DCreate", "cuTexObjectCreate", "cuSurfObjectCreate")


@pytest.fixture
def device(fake: FakeDriver) -> Iterator[CudaDevice]:
    with closing(CudaDevice(0, plain_starts=1)) as opened:
        yield opened


@pytest.fixture
def buffers(device: CudaDevice) -> dict[str, CudaBuffer]:
    return {name: device.allocate(IMAGE.size_bytes) for name in "abc"}


def seen(buffers: dict[str, CudaBuffer], name: str, letter: str, texture: Texture = IMAGE) -> TextureRef:
    access = Access(letter)
    if access is not Access.INPUT:
        texture = Texture("uint8", texture.channels, texture.extent, texture.layers)
    return TextureRef(BufferRef(name, buffers[name], access), texture)


def launch(*arguments: Any) -> Launch:
    return Launch(KERNEL, (1, 1, 1), (1, 1, 1), 0, arguments)


def held(fake: FakeDriver) -> dict[str, int]:
    return {name: fake.held[name] for name in HELD}


def done(fake: FakeDriver, run: CudaRun, *names: str) -> list[str]:
    """Start a run, and return which of these functions it calls, in order."""
    start = len(fake.calls)
    run.start()
    run.wait()
    run.done()
    return [name for name in fake.calls[start:] if name in names]


def in_stream(fake: FakeDriver, run: CudaRun) -> str:
    """Return what goes into a stream: ``c`` a copy of an array, ``k`` a launch."""
    letters = {"cuMemcpy3DAsync": "c", "cuLaunchKernel": "k"}
    return "".join(letters[name] for name in done(fake, run, *letters))


@pytest.mark.parametrize(
    ("launches", "arrays", "stream"),
    [
        (["a:i b:i"], (2, 2, 0), "k cc k k"),
        (["a:i a:i"], (1, 1, 0), "k c k k"),
        (["a:i", "a:i"], (1, 1, 0), "k c k k k"),
        (["a:io"], (1, 0, 1), "k ckc k"),
        (["a:i b:o"], (2, 1, 1), "k c ckc k"),
        (["a:i b:o", "b:i a:o"], (4, 2, 2), "k cckc cckc k"),
    ],
)
def test_what_is_made_and_copied(
    fake: FakeDriver,
    device: CudaDevice,
    buffers: dict[str, CudaBuffer],
    launches: list[str],
    arrays: tuple[int, int, int],
    stream: str,
) -> None:
    """What no launch writes is copied once, all else around each launch; a kernel of our own before and behind."""
    planned = [launch(*(seen(buffers, *use.split(":")) for use in line.split())) for line in launches]
    with closing(device.prepare(planned, 1)) as run:
        assert tuple(held(fake).values()) == arrays
        for _ in range(2):
            assert in_stream(fake, run) in (stream.replace(" ", ""), "")
        assert fake.held["cuGraphInstantiate"] == 1
    assert not any(held(fake).values())


def test_a_graph_has_the_copies_too(fake: FakeDriver, device: CudaDevice, buffers: dict[str, CudaBuffer]) -> None:
    letters = {"cuGraphAddMemcpyNode": "c", "cuGraphAddKernelNode": "k"}
    planned = [launch(seen(buffers, "a", "i"), seen(buffers, "b", "o"))]
    with closing(device.prepare(planned, 2)) as run:
        done(fake, run)
        nodes = done(fake, run, *letters, "cuMemcpy3DAsync")
        assert "".join(letters[name] for name in nodes) == "kc" + "ckc" * 2 + "k"


def test_other_buffers_make_another_graph_with_the_same_arrays(
    fake: FakeDriver, device: CudaDevice, buffers: dict[str, CudaBuffer], monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: list[int] = []
    add = driver.cuGraphAddMemcpyNode

    def note(graph: Any, before: Any, count: int, parameters: Any, context: Any) -> tuple[Any, ...]:
        sources.append(int(parameters.srcDevice))
        result: tuple[Any, ...] = add(graph, before, count, parameters, context)
        return result

    monkeypatch.setattr(driver, "cuGraphAddMemcpyNode", note)
    planned = [launch(seen(buffers, "a", "i"))]
    with closing(device.prepare(planned, 1)) as run:
        for _ in range(2):
            done(fake, run)
        before = held(fake)
        run.update([launch(TextureRef(BufferRef("a", buffers["c"], Access.INPUT), IMAGE))])
        assert fake.held["cuGraphInstantiate"] == 0
        done(fake, run)
        assert held(fake) == before
        run.update([launch(TextureRef(BufferRef("a", buffers["c"], Access.INPUT), IMAGE))])
        assert fake.held["cuGraphInstantiate"] == 1
    assert sources == [buffers["a"].address, buffers["c"].address]


@pytest.mark.parametrize(
    ("texture", "letter", "extent", "kind", "flags"),
    [
        (IMAGE, "i", (16, 8, 0), "UNSIGNED_INT8", 8),
        (IMAGE, "o", (16, 8, 0), "UNSIGNED_INT8", 2),
        (Texture("float16", 1, (512,)), "i", (512, 0, 0), "HALF", 0),
        (Texture("int32", 2, (8,), 8), "i", (8, 0, 8), "SIGNED_INT32", 1),
        (Texture("float32", 4, (8, 2), 2), "i", (8, 2, 2), "FLOAT", 1),
        (Texture("uint8", 4, (8, 2), 8), "io", (8, 2, 8), "UNSIGNED_INT8", 3),
        (Texture("uint16", 1, (8, 8, 4)), "i", (8, 8, 4), "UNSIGNED_INT16", 0),
    ],
)
def test_descriptions(
    device: CudaDevice,
    buffers: dict[str, CudaBuffer],
    monkeypatch: pytest.MonkeyPatch,
    texture: Texture,
    letter: str,
    extent: tuple[int, int, int],
    kind: str,
    flags: int,
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(driver, "cuArray3DCreate", lambda description: made.append(description) or (SUCCESS, 1))
    monkeypatch.setattr(driver, "cuArrayDestroy", lambda _: (SUCCESS,))
    with closing(device.prepare([launch(seen(buffers, "a", letter, texture))], 1)):
        (description,) = made
    assert (description.Width, description.Height, description.Depth) == extent
    assert description.Format.name == f"CU_AD_FORMAT_{kind}"
    assert (description.NumChannels, description.Flags) == (texture.channels, flags)


@pytest.mark.parametrize(
    ("texture", "flags"),
    [(IMAGE, 2), (Texture("uint8", 4, (16, 8)), 1), (Texture("float32", 1, (16, 8)), 0)],
)
def test_how_a_texture_is_read(
    device: CudaDevice, buffers: dict[str, CudaBuffer], monkeypatch: pytest.MonkeyPatch, texture: Texture, flags: int
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(driver, "cuTexObjectCreate", lambda _, description, view: made.append(description) or (SUCCESS, 1))
    monkeypatch.setattr(driver, "cuTexObjectDestroy", lambda _: (SUCCESS,))
    with closing(device.prepare([launch(seen(buffers, "a", "i", texture))], 1)):
        (description,) = made
    assert description.flags == flags
    assert [mode.name for mode in description.addressMode] == [f"CU_TR_ADDRESS_MODE_{texture.address_mode.name}"] * 3
    assert description.filterMode.name == f"CU_TR_FILTER_MODE_{texture.filter_mode.name}"


def test_what_fails_half_way_is_freed(fake: FakeDriver, device: CudaDevice, buffers: dict[str, CudaBuffer]) -> None:
    planned = [launch(seen(buffers, "a", "i"), seen(buffers, "b", "o"))]
    device.prepare(planned, 1).close()
    start = len(fake.calls)
    device.prepare(planned, 1).close()
    making = [index for index, name in enumerate(fake.calls[start:]) if name in HELD]
    assert len(making) == 4
    for index in making:
        fake.fail_at(index, OTHER)
        with pytest.raises(Exception, match="INVALID_HANDLE"):
            device.prepare(planned, 1)
        fake.work_again()
        assert not any(held(fake).values())


def test_a_refused_copy_is_told_with_its_launch(fake: FakeDriver, device: CudaDevice, buffers: dict[str, CudaBuffer]) -> None:
    planned = [launch(seen(buffers, "a", "io")), launch(seen(buffers, "b", "io"))]
    with closing(device.prepare(planned, 1)) as run:
        fake.fail_in("cuMemcpy3DAsync", OTHER)
        with pytest.raises(KernelFault, match="k could not be launched: cuMemcpy3DAsync: CUDA_ERROR_INVALID_HANDLE"):
            run.start()


def test_memory_that_the_pool_holds_on_to_is_given_back_for_arrays(
    fake: FakeDriver, device: CudaDevice, buffers: dict[str, CudaBuffer]
) -> None:
    planned = [launch(seen(buffers, "a", "i"))]
    fails = iter([True, False])
    fake.fails = lambda _, name: OUT_OF_MEMORY if name == "cuArray3DCreate" and next(fails) else SUCCESS
    start = len(fake.calls)
    with closing(device.prepare(planned, 1)):
        names = [name for name in fake.calls[start:] if name in ("cuArray3DCreate", "cuMemPoolTrimTo")]
        assert names == ["cuArray3DCreate", "cuMemPoolTrimTo", "cuArray3DCreate"]
    fake.fail_in("cuArray3DCreate", OUT_OF_MEMORY)
    with ExitStack() as stack, pytest.raises(OutOfMemory):
        stack.enter_context(closing(device.prepare(planned, 1)))


def test_arrays_count_as_memory_of_a_run(device: CudaDevice) -> None:
    assert device.run_bytes([KERNEL], [IMAGE, Texture("float32", 1, (8,), 3)]) == IMAGE.size_bytes + 96
