"""Tiles of tensors by maps that the kernel makes: what is inside, beyond the edges, swizzled, and refused."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, KernelFault, Launch
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.devices.emulator.runner import Array, array_of, buffer_of, load_all, run_launches

HEAD = """.version 8.6
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 a, .param .u64 o) {
    .reg .pred %q; .reg .b32 %x, %t, %m, %bar; .reg .b64 %a, %o, %p, %g; .shared .align 1024 .b8 tile[4096];
    .shared .align 128 .b8 map[128]; .shared .align 8 .b64 cell;
    ld.param.u64 %a, [a]; ld.param.u64 %o, [o]; mov.u32 %x, %tid.x; mov.u32 %t, tile; mov.u32 %m, map; mov.u32 %bar, cell;
    setp.eq.u32 %q, %x, 0; mad.wide.u32 %p, %x, 4, 0; mad.lo.u32 %x, %x, 4, %m; st.shared.u32 [%x], 0; mov.u32 %x, %tid.x;
    @%q mbarrier.init.shared.b64 [cell], 1; bar.sync 0; @!%q bra READY;
"""
BYTES = "mbarrier::complete_tx::bytes"
ROWS, COLUMNS = 10, 24
PITCH = 128
"""Bytes from one row to the next."""


def made(
    box: tuple[int, ...], elemtype: int, sizes: tuple[int, ...], strides: tuple[int, ...], swizzle: int = 0, base: str = "%a"
) -> list[str]:
    """Return what makes a map in shared memory."""
    start = "tensormap.replace.tile."
    one = [("global_address", "b64", base), ("rank", "b32", len(box) - 1), ("elemtype", "b32", elemtype)]
    one += [(name, "b32", 0) for name in ("interleave_layout", "fill_mode")] + [("swizzle_mode", "b32", swizzle)]
    lines = [f"{start}{name}.shared::cta.b1024.{kind} [%m], {value};" for name, kind, value in one]
    several = [("box_dim", "b32", box), ("global_dim", "b32", sizes), ("element_stride", "b32", (1,) * len(box))]
    for name, kind, values in [*several, ("global_stride", "b64", strides)]:
        lines += [f"{start}{name}.shared::cta.b1024.{kind} [%m], {index}, {value};" for index, value in enumerate(values)]
    return lines


def run(body: str, a: Array, o: Array, checks: tuple[str, ...] = ()) -> Array:
    code = f"{HEAD} {body} ret; }}"
    with closing(EmulatedDevice(checks=checks)) as device:
        module = load_all(device, code.encode())
        source, target = buffer_of(device, a), buffer_of(device, o)
        arguments = (BufferRef("a", source, Access.INOUT), BufferRef("o", target, Access.INOUT))
        run_launches(device, [Launch(module.kernels["k"], (1, 1, 1), (32, 1, 1), 0, arguments)])
        return array_of(target, o.dtype)


def load(lines: list[str], at: str, size: int, dimensions: int = 2) -> str:
    """Bring a tile to shared memory, as the map after a copy to global memory says, and its bytes to ``o``, from 1024 on."""
    return f"""
    {" ".join(lines)}
    READY: bar.sync 0;
    tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%o], [%m], 128;
    fence.proxy.tensormap::generic.acquire.gpu [%o], 128; cvta.to.global.u64 %g, %o;
    @%q mbarrier.arrive.expect_tx.shared.b64 _, [cell], {size};
    @%q cp.async.bulk.tensor.{dimensions}d.shared::cluster.global.tile.{BYTES} [%t], [%g, {{{at}}}], [%bar];
    AGAIN: mbarrier.try_wait.parity.shared.b64 %q, [cell], 0; @!%q bra AGAIN; setp.eq.u32 %q, %x, 0;
    add.u64 %p, %o, 1024; @%q cp.async.bulk.global.shared::cta.bulk_group [%p], [%t], {size};"""


def padded(matrix: Array) -> Array:
    """Return rows of ``PITCH`` bytes, as one array."""
    rows = np.zeros((len(matrix), PITCH // matrix.itemsize), matrix.dtype)
    rows[:, : matrix.shape[1]] = matrix
    return rows.reshape(-1)


def tile_of(matrix: Array, x: int, y: int, width: int, height: int) -> Array:
    around = np.zeros((ROWS + 200, COLUMNS + 200), matrix.dtype)
    around[100 : 100 + ROWS, 100 : 100 + COLUMNS] = matrix
    return around[100 + y : 100 + y + height, 100 + x : 100 + x + width]


@pytest.mark.parametrize("checks", [(), ("races", "init")], ids=["plain", "checked"])
@pytest.mark.parametrize(("x", "y"), [(8, 3), (20, 8), (-3, -2), (0, 50)])
@pytest.mark.parametrize(("kind", "elemtype"), [("u1", 0), ("f2", 6), ("f4", 7)])
def test_what_is_beyond_the_edges_is_zero(x: int, y: int, kind: str, elemtype: int, checks: tuple[str, ...]) -> None:
    matrix = np.random.default_rng(1).integers(1, 100, (ROWS, COLUMNS)).astype(kind)
    size = matrix.itemsize * 16 * 4
    lines = made((16, 4), elemtype, (COLUMNS, ROWS), (PITCH,))
    out = run(load(lines, f"{x}, {y}", size), padded(matrix), np.zeros(4096, "u1"), checks)[1024 : 1024 + size]
    np.testing.assert_array_equal(out.view(kind).reshape(4, 16), tile_of(matrix, x, y, 16, 4))


@pytest.mark.parametrize(("mode", "chunks"), [(1, 2), (2, 4), (3, 8)])
def test_swizzles(mode: int, chunks: int) -> None:
    matrix = np.random.default_rng(2).integers(1, 60000, (8, 64)).astype("u2")
    width = chunks * 8
    lines = made((width, 8), 1, (64, 8), (PITCH,), mode)
    size = 16 * width
    out = run(load(lines, "0, 0", size), matrix.reshape(-1), np.zeros(4096, "u1"))[1024 : 1024 + size].view("u2")
    expected = np.zeros((8 * chunks, 8), "u2")
    for row in range(8):
        for chunk in range(chunks):
            place = row * chunks + chunk
            expected[place ^ (place >> 3) % chunks] = matrix[row, 8 * chunk : 8 * chunk + 8]
    np.testing.assert_array_equal(out.reshape(-1, 8), expected)


def test_three_dimensions() -> None:
    tensor = np.random.default_rng(3).integers(1, 100, (4, 6, 8)).astype("f4")
    lines = made((4, 3, 2), 7, (8, 6, 4), (32, 192))
    out = run(load(lines, "4, 2, 1", 96, 3), tensor.reshape(-1), np.zeros(4096, "u1"))[1024:1120].view("f4")
    np.testing.assert_array_equal(out.reshape(2, 3, 4), tensor[1:3, 2:5, 4:8])


def test_a_tile_is_written_back_as_far_as_there_is_room() -> None:
    matrix = np.random.default_rng(4).integers(1, 100, (ROWS, COLUMNS)).astype("f4")
    back = np.zeros(ROWS * PITCH // 4 + 256, "f4")
    lines = made((8, 4), 7, (COLUMNS, ROWS), (PITCH,))
    target = made((8, 4), 7, (COLUMNS, ROWS), (PITCH,), base="%p")
    body = f"""
    {load(lines, "20, 8", 128).split("add.u64 %p, %o, 1024;")[0]} @!%q bra DONE;
    add.u64 %p, %o, 1024; {" ".join(target)} cvta.shared.u64 %g, %g; cvt.u64.u32 %g, %m; cvta.shared.u64 %g, %g;
    cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%g, {{20, 8}}], [%t]; cp.async.bulk.commit_group;
    DONE:"""
    out = run(body, padded(matrix), back)[256:].reshape(ROWS, -1)
    expected = np.zeros_like(matrix)
    expected[8:, 20:] = matrix[8:, 20:]
    np.testing.assert_array_equal(out[:, :COLUMNS], expected)
    assert not out[:, COLUMNS:].any()


@pytest.mark.parametrize("line", range(0, 13, 2))
def test_a_map_that_is_not_whole(line: int) -> None:
    lines = made((16, 4), 7, (COLUMNS, ROWS), (PITCH,))
    assert len(lines) == 13
    with pytest.raises(KernelFault, match="a tensor map is not one that the kernel made, field by field") as caught:
        run(load(lines[:line] + lines[line + 1 :], "0, 0", 256), np.zeros(1024, "f4"), np.zeros(4096, "u1"))
    assert caught.value.fault == "CUDA_ERROR_ILLEGAL_INSTRUCTION"


def test_a_map_that_points_beyond_a_buffer() -> None:
    lines = made((16, 4), 7, (COLUMNS, ROWS), (PITCH,))
    with pytest.raises(KernelFault, match="of buffer 'a' of 256 bytes"):
        run(load(lines, "0, 0", 256), np.zeros(64, "f4"), np.zeros(4096, "u1"))
