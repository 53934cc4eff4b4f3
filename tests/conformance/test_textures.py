"""Textures and surfaces on every device, beside what CUDA's manual says of them, computed with NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kaas_core.texture import AddressMode, FilterMode, Texture, texture_problems
from kaasd.devices.base import Device, KernelFault, Module
from tests.conformance.launching import Call, Seen, inout, inp, launch, out, u32, u64

PTX = Path(__file__).parent / "data/textures.ptx"
KERNELS = {(1, 0): "sample1Kern", (2, 0): "sample2Kern", (3, 0): "sample3Kern", (1, 3): "layered1Kern", (2, 3): "layered2Kern"}
"""By dimensions and layers."""
EXTENTS = {1: (13,), 2: (13, 7), 3: (13, 7, 5)}
MOST = {"unorm8": 255, "unorm16": 65535, "snorm8": 127, "snorm16": 32767}
STORED = {"unorm8": "u1", "unorm16": "u2", "snorm8": "i1", "snorm16": "i2"}
PLACES = 400


@pytest.fixture
def module(device: Device) -> Iterator[Module]:
    with closing(device.load(PTX.read_bytes())) as loaded:
        yield loaded


def texels(texture: Texture, seed: int = 0) -> np.ndarray:
    """Return random content: any integers, floats that are multiples of 1/8."""
    shape = (*((texture.layers,) if texture.layers else ()), *texture.extent[::-1], texture.channels)
    dtype = np.dtype(STORED.get(texture.dtype, texture.dtype))
    numbers = np.random.default_rng(seed).integers(-512, 512, shape)
    return (numbers / 8).astype(dtype) if dtype.kind == "f" else numbers.astype(dtype)


def read(texture: Texture, content: np.ndarray) -> np.ndarray:
    """Return the content as kernels read it."""
    wide = content.astype(np.float64)
    return np.maximum(wide / MOST[texture.dtype], -1) if texture.dtype in MOST else wide


def addressed(texture: Texture, index: np.ndarray, extent: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the texels that are read for these numbers, and which of them are inside."""
    inside = np.ones_like(index, bool)
    if texture.address_mode is AddressMode.BORDER:
        inside = (index >= 0) & (index < extent)
    if texture.address_mode is AddressMode.WRAP:
        index = index % extent
    elif texture.address_mode is AddressMode.MIRROR:
        index = index % (2 * extent)
        index = np.where(index < extent, index, 2 * extent - 1 - index)
    return np.clip(index, 0, extent - 1), inside


def sampled(texture: Texture, content: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return what is at places of ``x y z layer``."""
    values = read(texture, content)
    if texture.layers:
        layer = np.clip(places[:, 3].astype(int), 0, texture.layers - 1)
    at = places[:, : len(texture.extent)].astype(np.float64)
    if texture.normalized_coordinates:
        at = at * np.array(texture.extent)
    total = np.zeros((len(places), texture.channels))
    linear = texture.filter_mode is FilterMode.LINEAR
    steps = np.floor((at - 0.5) * 256 + 0.5).astype(int) if linear else np.floor(at).astype(int) * 256
    for corner in np.ndindex(*[2 if linear else 1] * len(texture.extent)):
        weight, inside, index = np.ones(len(places)), np.ones(len(places), bool), []
        for axis, second in enumerate(corner):
            fraction = steps[:, axis] % 256 / 256
            weight *= fraction if second else 1 - fraction
            number, within = addressed(texture, steps[:, axis] // 256 + second, texture.extent[axis])
            index.insert(0, number)
            inside &= within
        where = (layer, *index) if texture.layers else tuple(index)
        total += np.where(inside, weight, 0)[:, None] * values[where]
    return total


FRACTIONS = np.concatenate([np.arange(16, 112), np.arange(144, 240)]) / 256
"""Of a texel: a GPU may round what is nearer to an edge, or to a centre, to the other side."""


def places_for(texture: Texture, seed: int = 1) -> np.ndarray:
    """Return places within and around a texture, at whole multiples of 1/256 of a texel."""
    rng = np.random.default_rng(seed)
    extent = np.array((*texture.extent, 1, 1)[:3])
    around = 2 * extent if texture.normalized_coordinates else np.full(3, 4)
    places = rng.integers(-around, extent + around, (PLACES, 3)) + rng.choice(FRACTIONS, (PLACES, 3))
    if texture.normalized_coordinates:
        places = places / extent
    return np.column_stack([places, rng.integers(0, 5, PLACES)]).astype(np.float32)


def run_samples(
    device: Device, module: Module, texture: Texture, kernel: str, content: np.ndarray, places: np.ndarray
) -> np.ndarray:
    arguments = [Seen(inp("texture"), texture), u32(len(places)), inp("places"), out("out")]
    buffers = {"texture": content, "places": places, "out": np.zeros((len(places), 4), np.float32)}
    return launch(device, module, [Call(kernel, 4, 128, arguments)], buffers)["out"]


def check(device: Device, module: Module, texture: Texture) -> None:
    content, places = texels(texture), places_for(texture)
    kernel = KERNELS[len(texture.extent), texture.layers]
    found = run_samples(device, module, texture, kernel, content, places)
    # What a GPU's filter rounds, the manual does not say.
    tolerance = 1e-6 if texture.filter_mode is FilterMode.POINT or "emulator" in device.properties.name else 8 / 256
    expected = sampled(texture, content, places)
    scale = np.abs(read(texture, content)).max()
    np.testing.assert_allclose(found[:, : texture.channels], expected, rtol=1e-6, atol=tolerance * scale)


@pytest.mark.parametrize("filter_mode", FilterMode)
@pytest.mark.parametrize(
    ("mode", "normalized"), [("clamp", False), ("border", False), *((mode.value, True) for mode in AddressMode)]
)
@pytest.mark.parametrize(("dimensions", "layers"), KERNELS)
def test_every_geometry(
    device: Device, module: Module, dimensions: int, layers: int, mode: str, normalized: bool, filter_mode: FilterMode
) -> None:
    texture = Texture("float32", 4, EXTENTS[dimensions], layers, AddressMode(mode), filter_mode, normalized)
    if not list(texture_problems(texture, None, is_surface=False)):
        check(device, module, texture)
    else:
        assert (dimensions, layers, mode, filter_mode) == (1, 0, "border", FilterMode.LINEAR)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float16", "float32", *MOST])
def test_elements_that_are_read_as_floats(device: Device, module: Module, dtype: str, channels: int) -> None:
    for filter_mode in FilterMode:
        check(device, module, Texture(dtype, channels, EXTENTS[2], 0, AddressMode.CLAMP, filter_mode))


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_integers_as_they_are(device: Device, module: Module, dtype: str, channels: int) -> None:
    texture = Texture(dtype, channels, EXTENTS[2])
    content = texels(texture)
    arguments = [Seen(inp("texture"), texture), u32(13), out("out")]
    buffers = {"texture": content, "out": np.zeros((7, 13, 4), np.int32)}
    found = launch(device, module, [Call("signedKern", (1, 7, 1), 32, arguments)], buffers)["out"]
    np.testing.assert_array_equal(found[..., :channels], content.astype(np.int64).astype(np.int32))


def test_special_halves(device: Device, module: Module) -> None:
    """Every half-precision number but NaN."""
    content = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256, 1)
    content[np.isnan(content)] = 0
    texture = Texture("float16", 1, (256, 256))
    y, x = np.mgrid[:256, :256] + 0.5
    places = np.stack([x, y, x, y], -1).reshape(-1, 4).astype(np.float32)
    arguments = [Seen(inp("texture"), texture), u32(len(places)), inp("places"), out("out")]
    buffers = {"texture": content, "places": places, "out": np.zeros((len(places), 4), np.float32)}
    found = launch(device, module, [Call("sample2Kern", 512, 128, arguments)], buffers)["out"]
    np.testing.assert_array_equal(found[:, 0], content.ravel().astype(np.float32))


def test_levels_and_gradients_come_to_the_only_level(device: Device, module: Module) -> None:
    texture = Texture("float32", 2, EXTENTS[2])
    content, places = texels(texture), places_for(texture)
    found = run_samples(device, module, texture, "levelsKern", content, places)
    np.testing.assert_array_equal(found, np.tile(sampled(texture, content, places), 2))


def test_gather(device: Device, module: Module) -> None:
    """The four texels that a filter takes, counterclockwise from the lower left."""
    texture = Texture("float32", 2, EXTENTS[2])
    content, places = texels(texture), places_for(texture)
    found = run_samples(device, module, texture, "gatherKern", content, places)
    for index, (right, down) in enumerate([(0, 1), (1, 1), (1, 0), (0, 0)]):
        moved = np.floor(places - 0.5) + np.float32([right + 0.5, down + 0.5, 0, 0])
        np.testing.assert_array_equal(found[:, index], sampled(texture, content, moved)[:, 1])


@pytest.mark.parametrize("iterations", [1, 3])
def test_bytes_of_surfaces(device: Device, module: Module, iterations: int) -> None:
    surface = Texture("uint8", 4, (33, 9))
    content = texels(surface)
    call = Call("bytesKern", (2, 9, 1), 32, [Seen(inout("a"), surface), Seen(out("b"), surface), u32(33), u32(9)])
    back = Call("bytesKern", (2, 9, 1), 32, [Seen(inout("b"), surface), Seen(inout("a"), surface), u32(33), u32(9)])
    found = launch(device, module, [call, back], {"a": content, "b": np.zeros_like(content)}, iterations)
    np.testing.assert_array_equal(found["a"], content + np.uint8(2 * iterations))
    np.testing.assert_array_equal(found["b"], content + np.uint8(2 * iterations - 1))


def test_the_edges_of_a_surface(device: Device, module: Module) -> None:
    surface = Texture("float32", 1, (10, 6))
    content, reach = texels(surface)[..., 0], 4
    arguments = [Seen(inout("s"), surface), u32(reach), out("read")]
    buffers = {"s": content, "read": np.zeros((14, 18, 2), np.float32)}
    found = launch(device, module, [Call("edgesKern", 1, (18, 14, 1), arguments)], buffers)
    np.testing.assert_array_equal(found["read"][..., 0], np.pad(content, reach, mode="edge"))
    np.testing.assert_array_equal(found["read"][..., 1], np.pad(content, reach))
    np.testing.assert_array_equal(found["s"], content + 100)


def test_surfaces_of_every_geometry(device: Device, module: Module) -> None:
    width, height, depth = 8, 4, 3
    surfaces = {
        "line": Texture("int16", 1, (width,)),
        "lines": Texture("uint32", 2, (width,), depth),
        "images": Texture("float32", 4, (width, height), depth),
        "volume": Texture("float16", 1, (width, height, depth)),
    }
    arguments = [Seen(out(name), surface) for name, surface in surfaces.items()] + [u32(width), u32(height), u32(depth)]
    buffers = {name: np.zeros_like(texels(surface)) for name, surface in surfaces.items()}
    found = launch(device, module, [Call("fillKern", 1, (width, height, depth), arguments)], buffers)
    z, y, x = np.mgrid[:depth, :height, :width]
    np.testing.assert_array_equal(found["line"][:, 0], x[0, 0] + 7)
    np.testing.assert_array_equal(found["lines"], np.stack([x, z], -1)[:, 0])
    np.testing.assert_array_equal(found["images"], np.stack([x, y, z, 0 * x - 1], -1))
    np.testing.assert_array_equal(found["volume"][..., 0], x + 10 * y + 100 * z)


@pytest.mark.parametrize("iterations", [1, 2, 50])
def test_a_texture_has_what_the_launch_before_has_written(device: Device, module: Module, iterations: int) -> None:
    seen = Texture("float32", 1, (40, 20))
    content = texels(seen)[..., 0]

    def step(source: str, target: str) -> Call:
        return Call("diffuseKern", (2, 20, 1), 32, [Seen(inp(source), seen), Seen(inout(target), seen), u32(40), u32(20)])

    found = launch(device, module, [step("a", "b"), step("b", "a")], {"a": content, "b": np.zeros_like(content)}, iterations)
    expected = content.astype(np.float32)
    for _ in range(2 * iterations):
        around = np.pad(expected, 1, mode="edge")
        expected = np.float32(0.25) * (around[1:-1, :-2] + around[1:-1, 2:] + around[:-2, 1:-1] + around[2:, 1:-1])
    np.testing.assert_allclose(found["a"], expected, rtol=1e-5, atol=1e-4)


def test_a_write_beyond_a_surface_is_a_fault(device: Device, module: Module, device_name: str) -> None:
    if device_name.startswith("cuda"):  # it would cost the process
        return
    surface = Texture("float32", 1, (10,))
    for place in (10, 2**32 - 1):
        with pytest.raises(KernelFault, match="an access outside of a surface"):
            launch(device, module, [Call("beyondKern", 1, 1, [Seen(out("s"), surface), u32(place)])], {"s": np.zeros(10, "f4")})


@pytest.mark.parametrize("handle", [0, 1, 5 << 44, 2**64 - 1])
def test_a_handle_of_nothing_is_a_fault(device: Device, module: Module, device_name: str, handle: int) -> None:
    if device_name.startswith("cuda"):  # it would cost the process
        return
    with pytest.raises(KernelFault, match="the handle is not that of a texture or surface"):
        launch(device, module, [Call("beyondKern", 1, 1, [u64(handle), u32(0)])], {})


def test_another_geometry_or_use_is_a_fault(device: Device, module: Module, device_name: str) -> None:
    if device_name.startswith("cuda"):  # which does not see it
        return
    for use, texture in ((out("s"), Texture("float32", 1, (10, 1))), (inp("s"), Texture("float32", 1, (10,)))):
        with pytest.raises(KernelFault, match="the handle is not that of a texture or surface"):
            launch(device, module, [Call("beyondKern", 1, 1, [Seen(use, texture), u32(0)])], {"s": np.zeros(10, "f4")})
