"""Special registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from kaasd.devices.emulator.layout import CONTEXT, LAUNCH, THREAD, WARP_SIZE
from kaasd.devices.emulator.native import I1, I32, I64, const, i32, i64

if TYPE_CHECKING:
    from kaasd.devices.emulator.emitter import Emitter


def _launch(t: Emitter, field: str) -> ir.Value:
    return t.b.get(LAUNCH, t.b.get(CONTEXT, t.context, "launch"), field)


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
    "%cluster_ctarank": lambda t: i32(0),
    "%cluster_nctarank": lambda t: i32(1),
    "%is_explicit_cluster": lambda t: const(I1, 0),
    **{f"%envreg{index}": lambda t: i32(0) for index in range(32)},
    **{f"%pm{index}": lambda t: i32(0) for index in range(8)},
    **{f"%reserved_smem_offset_{part}": lambda t: i32(0) for part in ("begin", "end", "cap", "0", "1")},  # none is reserved
    **{f"%pm{index}_64": _grid_id for index in range(8)},
}


def _vector(t: Emitter, name: str, axis: str) -> ir.Value | None:
    """Return a component of one of the vectors that place a thread, or None."""
    match name:
        case "%tid":
            return t.b.get(THREAD, t.thread, axis)
        case "%ntid":
            return _launch(t, f"block_{axis}")
        case "%ctaid" | "%clusterid":  # every block is a cluster by itself
            return t.b.get(CONTEXT, t.context, f"block_{axis}")
        case "%nctaid" | "%nclusterid":
            return _launch(t, f"grid_{axis}")
        case "%cluster_ctaid":
            return i32(0)
        case "%cluster_nctaid":
            return i32(1)
    return None


def read(t: Emitter, name: str) -> ir.Value:
    """Return a special register's value, in its own width. Raises ``Unsupported``."""
    vector, _, axis = name.partition(".")
    if axis == "w" and _vector(t, vector, "x") is not None:
        return i32(0)
    if axis in ("x", "y", "z") and (value := _vector(t, vector, axis)) is not None:
        return value
    reader = _READERS.get(name)
    if reader is None:
        raise t.error(f"{name} is neither declared nor a special register that the emulated device has")
    return reader(t)
