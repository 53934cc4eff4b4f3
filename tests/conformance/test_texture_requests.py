"""Textures and surfaces through the real daemon, on every device: stored values, functions with other keys, chains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kaas_client import Client, Kernel, Key, Request, inout, inp, out, surface, texture, tmp, u32
from kaas_core.errors import InvalidRequestError

PTX = Path(__file__).parent / "data/textures.ptx"
WIDTH, HEIGHT = 160, 120
"""More than what travels with the launches."""
SHAPE = {"dtype": "float32", "extent": (WIDTH, HEIGHT)}


@pytest.fixture(scope="module")
def library(kaas: Client) -> str:
    return kaas.upload(PTX)


def diffuse(library: str, source: object, target: object) -> Kernel:
    arguments = [source, target, u32(WIDTH), u32(HEIGHT)]
    return Kernel(library, "diffuseKern", grid=(5, HEIGHT), block=32, args=arguments)  # type: ignore[arg-type]


def heat(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 12, (HEIGHT, WIDTH)).astype(np.float32)


def diffused(image: np.ndarray, times: int = 1) -> np.ndarray:
    for _ in range(times):
        around = np.pad(image, 1, mode="edge")
        image = np.float32(0.25) * (around[1:-1, :-2] + around[1:-1, 2:] + around[:-2, 1:-1] + around[2:, 1:-1])
    return image


def test_stored_values_and_other_keys(kaas: Client, library: str) -> None:
    request = Request([diffuse(library, texture(inp("x"), **SHAPE), surface(out("y"), **SHAPE))])  # type: ignore[arg-type]
    function = kaas.register("diffuse", request)
    assert function.outputs == ("y",)
    for seed in range(4):
        kaas.put("x", heat(seed))
        kaas.submit(request)
        np.testing.assert_array_equal(kaas.get("y", dtype="f4").reshape(HEIGHT, WIDTH), diffused(heat(seed)))
        kaas.put(f"x{seed}", heat(seed + 10))
        function(x=Key(f"x{seed}"), y=Key(f"y{seed}"))
        np.testing.assert_array_equal(kaas.get(f"y{seed}", dtype="f4").reshape(HEIGHT, WIDTH), diffused(heat(seed + 10)))
        given = function(x=heat(seed + 20)).array("y", "f4").reshape(HEIGHT, WIDTH)
        np.testing.assert_array_equal(given, diffused(heat(seed + 20)))


@pytest.mark.parametrize("iterations", [1, 7, 200])
def test_there_and_back(kaas: Client, library: str, iterations: int) -> None:
    """A buffer is a texture of one launch, a surface of another, and plain memory of neither."""
    kernels = [
        diffuse(library, texture(inp("a", ephemeral=True), **SHAPE), surface(tmp("b"), **SHAPE)),  # type: ignore[arg-type]
        diffuse(library, texture(inp("b"), **SHAPE), surface(inout("a"), **SHAPE)),  # type: ignore[arg-type]
    ]
    request = Request(kernels, iterations=iterations)
    for seed in range(3):
        found = kaas.submit(request, inputs={"a": heat(seed)}, returns=["a"], trace=seed == 1).array("a", "f4")
        np.testing.assert_array_equal(found.reshape(HEIGHT, WIDTH), diffused(heat(seed), 2 * iterations))


def test_what_the_kernel_does_not_take(kaas: Client, library: str) -> None:
    arguments = [texture(inp("x"), **SHAPE), surface(out("y"), **SHAPE), texture(inp("x"), **SHAPE), u32(1)]  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="takes 4 bytes here, but the handle of texture 'x' has 8") as caught:
        kaas.submit(Request([Kernel(library, "diffuseKern", args=arguments)]))
    assert [violation.field for violation in caught.value.violations] == ["kernels[0].arguments[2]"]
