"""Special registers: what emits the code that reads each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I1, I32, I64, i32, i64
from kaasd.devices.emulator.codegen.structures import CONTEXT, LAUNCH, THREAD, WARP_SIZE
from kaasd.devices.emulator.ptx.routine import Special


def _launch(t: Emitter, field: str) -> ir.Value:
    return t.b.get_fixed(LAUNCH, t.launch, field)


def _lane(t: Emitter) -> ir.Value:
    return t.b.and_(t.b.get(THREAD, t.thread, "index"), i32(WARP_SIZE - 1))


def _bit(t: Emitter) -> ir.Value:
    return t.b.shl(i32(1), _lane(t))


def _less(t: Emitter) -> ir.Value:
    return t.b.sub(_bit(t), i32(1))


def _warps(t: Emitter) -> ir.Value:
    return t.b.lshr(t.b.add(_launch(t, "threads"), i32(WARP_SIZE - 1)), i32(5))


def _grid_id(t: Emitter) -> ir.Value:
    return i64(0)


def _nanoseconds(t: Emitter) -> ir.Value:
    """The time of day, as the C library has it: seconds and nanoseconds."""
    b = t.b
    with b.goto_entry_block():
        time = b.alloca(ir.LiteralStructType([I64, I64]))
    t.call("clock_gettime", I32, i32(0), time)
    return b.add(b.mul(b.load_as(I64, time), i64(10**9)), b.load_as(I64, b.at(time, 8)))


def _cycles(t: Emitter) -> ir.Value:
    return t.call("llvm.readcyclecounter", I64)


def _place_in_cluster(t: Emitter, axis: str) -> ir.Value:
    return t.b.urem(t.b.get(CONTEXT, t.context, f"block_{axis}"), _launch(t, f"cluster_{axis}"))


def cluster_rank(t: Emitter) -> ir.Value:
    """Return which of its cluster's blocks the thread's is."""
    x, y, z = (_place_in_cluster(t, axis) for axis in "xyz")
    return t.b.add(x, t.b.mul(_launch(t, "cluster_x"), t.b.add(y, t.b.mul(_launch(t, "cluster_y"), z))))


def _environment(index: int, t: Emitter) -> ir.Value:
    """Two hold the address of what a cooperative grid meets at, the low half in ``%envreg2``, as nvcc's code takes it."""
    if index not in (1, 2):
        raise t.error(f"%envreg{index} is set by no launch")
    t.image.meets_as_grid = True
    address = _launch(t, "grid_workspace")
    return t.b.trunc(address if index == 2 else t.b.lshr(address, i64(32)), I32)


def _refuse_counter(name: str, t: Emitter) -> NoReturn:
    raise t.error(f"{name} counts what a GPU's profiler is set to, and there is none here")


_READERS: dict[str, Callable[[Emitter], Any]] = {
    "%laneid": _lane,
    "%warpid": lambda t: t.b.lshr(t.b.get(THREAD, t.thread, "index"), i32(5)),
    "%nwarpid": _warps,
    "%lanemask_eq": _bit,
    "%lanemask_lt": _less,
    "%lanemask_le": lambda t: t.b.or_(_bit(t), _less(t)),
    "%lanemask_gt": lambda t: t.b.not_(t.b.or_(_bit(t), _less(t))),
    "%lanemask_ge": lambda t: t.b.not_(_less(t)),
    "%clock": lambda t: t.b.trunc(_cycles(t), I32),
    "%clock_hi": lambda t: t.b.trunc(t.b.lshr(_cycles(t), i64(32)), I32),
    "%clock64": _cycles,
    "%globaltimer": _nanoseconds,
    "%globaltimer_lo": lambda t: t.b.trunc(_nanoseconds(t), I32),
    "%globaltimer_hi": lambda t: t.b.trunc(t.b.lshr(_nanoseconds(t), i64(32)), I32),
    "%gridid": _grid_id,
    "%smid": lambda t: i32(0),
    "%nsmid": lambda t: i32(1),
    "%dynamic_smem_size": lambda t: _launch(t, "dynamic_shared"),
    "%total_smem_size": lambda t: t.b.trunc(_launch(t, "shared_size"), I32),
    "%aggr_smem_size": lambda t: t.b.trunc(_launch(t, "shared_size"), I32),
    "%current_graph_exec": _grid_id,
    "%cluster_ctarank": cluster_rank,
    "%cluster_nctarank": lambda t: _launch(t, "cluster_size"),
    "%is_explicit_cluster": lambda t: t.b.trunc(_launch(t, "is_explicit_cluster"), I1),
    **{f"%reserved_smem_offset_{part}": lambda t: i32(0) for part in ("begin", "end", "cap", "0", "1")},  # none is reserved
    **{f"%envreg{index}": partial(_environment, index) for index in range(32)},
    **{f"%pm{index}{width}": partial(_refuse_counter, f"%pm{index}{width}") for index in range(8) for width in ("", "_64")},
}


_VECTORS: dict[str, Callable[[Emitter, str], Any]] = {
    "%tid": lambda t, axis: t.b.get(THREAD, t.thread, axis),
    "%ntid": lambda t, axis: _launch(t, f"block_{axis}"),
    "%ctaid": lambda t, axis: t.b.get(CONTEXT, t.context, f"block_{axis}"),
    "%clusterid": lambda t, axis: t.b.udiv(t.b.get(CONTEXT, t.context, f"block_{axis}"), _launch(t, f"cluster_{axis}")),
    "%nctaid": lambda t, axis: _launch(t, f"grid_{axis}"),
    "%nclusterid": lambda t, axis: t.b.udiv(_launch(t, f"grid_{axis}"), _launch(t, f"cluster_{axis}")),
    "%cluster_ctaid": _place_in_cluster,
    "%cluster_nctaid": lambda t, axis: _launch(t, f"cluster_{axis}"),
}
"""Those that place a thread, by ``x``, ``y`` or ``z``."""


def names() -> list[str]:
    """Return the name of every special register, a vector's with its first part."""
    return [*_READERS, *(f"{vector}.x" for vector in _VECTORS)]


def _component(vector: str, axis: str, t: Emitter) -> Any:
    return _VECTORS[vector](t, axis)


def _refuse_whole(vector: str, t: Emitter) -> NoReturn:
    raise t.error(f"{vector} is a vector; name one of its parts, such as {vector}.x")


def reader(name: str) -> Callable[[Emitter], Any] | None:
    """Return what emits the value of a special register, in its own width, or None if there is none of this name."""
    vector, _, axis = name.partition(".")
    if vector not in _VECTORS:
        return _READERS.get(name)
    if axis in ("x", "y", "z"):
        return partial(_component, vector, axis)
    if axis == "w":
        return lambda t: i32(0)
    return None if axis else partial(_refuse_whole, vector)


def components(name: str, count: int) -> list[Special]:
    """Return the first components of a special register, as many as it has: none of one that is no vector."""
    named = [(f"{name}.{axis}", reader(f"{name}.{axis}")) for axis in "xyzw"[:count]]
    return [Special(part, emit) for part, emit in named if emit is not None]


def read(t: Emitter, name: str) -> ir.Value:
    """Emit the value of a special register that there is."""
    return _READERS[name](t)
