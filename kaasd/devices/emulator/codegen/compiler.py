"""From a resolved kernel to native code, one LLVM function for each routine. Knows nothing of single instructions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llvmlite import ir

from kaasd.devices.emulator.codegen.checks import RACES, begin_block, begin_thread
from kaasd.devices.emulator.codegen.cores import call_others, take
from kaasd.devices.emulator.codegen.groups import build_group
from kaasd.devices.emulator.codegen.kernel_image import KernelImage
from kaasd.devices.emulator.codegen.liveness import targets
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, PTR, Builder, i32, i64
from kaasd.devices.emulator.codegen.routine_code import LONG, KernelMeetings, Meetings, RoutineCompiler
from kaasd.devices.emulator.codegen.structures import (
    CONTEXT,
    FUNCTION,
    LAUNCH,
    RUN,
    STATUS_BITS,
    THREAD,
    THREAD_FUNCTION,
    WARP_SIZE,
    Fault,
    Status,
    enter_block,
    enter_thread,
    record_thread,
    stopped,
)
from kaasd.devices.emulator.codegen.warp_code import WarpCompiler
from kaasd.devices.emulator.codegen.warp_plan import WarpPlan
from kaasd.devices.emulator.ptx.routine import Routine, Signature, Storage
from kaasd.devices.emulator.ptx.types import align

STACK_SIZE = 64 << 10
"""Bytes of saved registers, and as many of local memory, for each thread of a kernel with recursion or indirect calls; and bytes
of local memory for each function with ``alloca``."""
TWICE_WIDENED = 100
"""Most operations of a kernel that is compiled for whole warps twice where it is compiled twice: it takes some 0.1 s."""
INLINED = 400
"""Most operations of a routine that waits and becomes part of the loop over threads: it pays where little is done at a time."""


BY_LANE = "_by_lane"
"""What the code is called that takes the threads of a warp to differ by their lane only."""


@dataclass(frozen=True, slots=True)
class _Code:
    """A routine's code: for one thread, and for those of a warp that run together."""

    thread: ir.Function
    group: ir.Function
    waits: bool
    warp: ir.Function | None = None
    """For a whole warp at once, if there is such code."""


class CompiledKernel:
    """A kernel's LLVM module, with the routines that it can reach (itself among them). Raises ``Unsupported``."""

    def __init__(
        self,
        entry: Routine,
        routines: Sequence[Routine],
        function_addresses: Mapping[str, int],
        declared: Mapping[str, Signature],
        find_meetings: Callable[[Routine, Callable[[Storage], int]], KernelMeetings],
        checks: frozenset[str] = frozenset(),
    ) -> None:
        """``find_meetings`` says of a routine, given where shared variables lie, where the threads of a warp come together."""
        self.image = KernelImage(entry, routines, function_addresses, declared, checks)
        module = self.image.module
        meetings = {routine.name: find_meetings(routine, self.image.shared_offset) for routine in routines}
        self.frame_sizes = dict.fromkeys(meetings, 0)
        self.saved_stride = 0
        """Bytes in which the registers of a warp are kept while it is not run as a whole; 0 where it never is."""
        plan = WarpPlan.of(self.image, entry) if len(routines) == 1 else None
        by_lane = meetings[entry.name].by_lane
        if plan is not None and by_lane is not None and _stops(entry, by_lane):
            by_lane = None  # a whole warp comes together nowhere, so that code of its own gains nothing
        plan_in_general = plan if by_lane is None or len(entry.operations) <= TWICE_WIDENED else None
        codes = {
            routine.name: self._compile(routine, meetings[routine.name].general, "", plan_in_general) for routine in routines
        }
        self.waits = self._define_run("", codes[entry.name], any(code.waits for code in codes.values()))
        """Whether a thread can return before its end, so that the scheduler is needed."""
        self.by_lane = by_lane is not None
        """Whether there is other code for threads of a warp that differ by their lane only."""
        self.pointers = sorted(meetings[entry.name].pointers) if self.by_lane else []
        """Offsets of the parameters that it takes to be buffers."""
        self.is_long = any(len(routine.operations) > LONG for routine in routines)
        """Whether LLVM is not to do more than what pays for code of any length."""
        self.by_lane_waits = False
        if by_lane is not None:
            code = self._compile(entry, by_lane, BY_LANE, plan)
            self.by_lane_waits = self._define_run(BY_LANE, code, code.waits)
        for name, size in self.frame_sizes.items():
            self.image.frame_sizes[name].initializer = i64(size)
        self.frame_stride, self.local_stride = self._stack_sizes()
        """Bytes of saved registers, and of local memory, for a thread."""
        self.image.local_size.initializer = i64(self.local_stride)
        _define(self.image.function_table, self._function_entries(codes))
        self.image.define_address_table()
        collectives = ir.GlobalVariable(module, ir.ArrayType(PTR, max(1, len(self.image.collectives))), "collectives")
        _define(collectives, list(self.image.collectives))

    def _compile(self, routine: Routine, meetings: Meetings, variant: str, plan: WarpPlan | None) -> _Code:
        function = ir.Function(self.image.module, THREAD_FUNCTION, f"routine.{routine.name}{variant}")
        function.linkage = "internal"
        compiler = RoutineCompiler(self.image, routine, function, meetings, plan.exits if plan else ())
        self.frame_sizes[routine.name] = max(self.frame_sizes[routine.name], compiler.compile())
        inlined = len(routine.operations) <= INLINED
        if inlined or not compiler.waits:
            function.attributes.add("alwaysinline")
        warp = None
        if plan is not None:
            whole = WarpCompiler(self.image, plan, compiler.liveness, compiler.entries, f"warp.{routine.name}{variant}")
            whole.compile()
            warp, self.saved_stride = whole.function, max(self.saved_stride, align(whole.area_size, 64))
        group = build_group(self.image, function, f"group.{routine.name}{variant}", inlined and compiler.waits, warp)
        return _Code(function, group, compiler.waits, warp)

    def _define_run(self, variant: str, code: _Code, waits: bool) -> bool:
        """Emit what runs a launch. Returns whether it is left to the scheduler, which then needs a thread of its own for each."""
        waits |= RACES in self.image.checks
        if waits or not variant:
            pointer = ir.GlobalVariable(self.image.module, PTR, f"group_function{variant}")
            pointer.initializer = code.group
            pointer.global_constant = True
        if not waits:
            area = self.saved_stride if code.warp else 0
            _emit_simple_run(self.image.module, code, f"run{variant}", checked=bool(self.image.checks), area=area)
        return waits

    def _stack_sizes(self) -> tuple[int, int]:
        """Return the largest stack that calls can need, or the default where that is not known before they run."""
        by_name = {routine.name: routine for routine in self.image.routines}

        def depth(name: str, above: frozenset[str]) -> tuple[int, int] | None:
            routine = by_name[name]
            if name in above or routine.calls_indirectly:
                return None
            inner = [depth(callee, above | {name}) for callee in routine.callees if callee in by_name]
            if None in inner:
                return None
            known = [sizes for sizes in inner if sizes is not None]
            frame, local = (max((sizes[i] for sizes in known), default=0) for i in (0, 1))
            own = routine.local_size + (STACK_SIZE if routine.allocates else 0)
            return self.frame_sizes[name] + frame, own + local

        return depth(self.image.entry.name, frozenset()) or (STACK_SIZE, STACK_SIZE)

    def _function_entries(self, codes: Mapping[str, _Code]) -> list[ir.Constant]:
        """The table of functions, in the order of their device addresses; those out of reach have no code."""
        by_name = {routine.name: routine for routine in self.image.routines}
        entries = []
        for name in self.image.function_addresses:
            routine = by_name.get(name)
            if routine is None:
                entries.append(ir.Constant(FUNCTION.ir, [ir.Constant(PTR, None), i64(0), i64(0), i64(0), i64(0)]))
                continue
            signature = routine.signature
            results = max((place.offset + place.size for place in signature.results), default=0)
            sizes = (self.frame_sizes[name], routine.local_size, signature.size, results)
            entries.append(ir.Constant(FUNCTION.ir, [codes[name].group, *map(i64, sizes)]))
        return entries


def _stops(routine: Routine, meetings: Meetings) -> bool:
    """Whether a thread stops anywhere before its end."""
    if meetings.before or meetings.heads or meetings.after:
        return True
    operations = routine.operations
    return any(op.match.form.suspends or any(target <= op.index for target in targets(routine, op)) for op in operations)


def _define(table: ir.GlobalVariable, entries: list[ir.Constant]) -> None:
    table.global_constant = True
    table.initializer = ir.Constant(table.value_type, entries or None)


def _emit_simple_run(module: ir.Module, code: _Code, name: str, checked: bool, area: int) -> None:
    """Emit the ``RUN`` of this name for a kernel whose threads never wait: plain loops over blocks and threads."""
    function = ir.Function(module, RUN, name)
    (context,) = function.args
    b = Builder(function.append_basic_block("entry"))
    launch, arena = b.get(CONTEXT, context, "launch"), b.get(CONTEXT, context, "arena")
    grid = [b.zext(b.get(LAUNCH, launch, f"grid_{axis}"), I64) for axis in "xyz"]
    block = [b.get(LAUNCH, launch, f"block_{axis}") for axis in "xyz"]
    shared = b.at(arena, b.get(LAUNCH, launch, "shared_offset"))
    thread = b.alloca(THREAD.ir)
    local = b.at(arena, b.get(LAUNCH, launch, "locals_offset"))
    b.put(THREAD, thread, locals=local, local=0)
    enter_thread(b, context, local)
    place, end = b.variable(I64, 0), b.variable(I64, 0)
    begin, done = b.append_basic_block("begin"), b.append_basic_block("done")
    b.branch(begin)
    b.position_at_end(begin)
    with b.when(b.is_("==", b.load(place, typ=I64), b.load(end, typ=I64)), likely=False):
        for variable, value in zip((place, end), take(b, context), strict=True):
            b.store(value, variable)
        with b.when(b.is_("==", b.load(place, typ=I64), b.load(end, typ=I64))):
            b.branch(done)
    number = b.load(place, typ=I64)
    b.store(b.add(number, i64(1)), place)
    row = b.udiv(number, grid[0])
    coordinates = (b.urem(number, grid[0]), b.urem(row, grid[1]), b.udiv(row, grid[1]))
    block_x, block_y, block_z = (b.trunc(coordinate, I32) for coordinate in coordinates)
    with b.when(stopped(b, context), likely=False):
        b.ret(i32(Fault.STOPPED))
    call_others(b, context)
    enter_block(b, context, block_x, block_y, block_z, shared)
    if checked:
        b.put(CONTEXT, context, block=arena)
        begin_block(b, context, arena, b.trunc(number, I32))
    if code.warp is not None:
        _run_warps(b, code, context, thread, block, area)
        b.branch(begin)
        b.position_at_end(done)
        b.ret(i32(Fault.NONE))
        return
    index = b.variable(I32, 0)
    with b.count(block[2]) as z, b.count(block[1]) as y, b.count(block[0]) as x:
        position = b.load(index, typ=I32)
        b.store(b.add(position, i32(1)), index)
        b.put(THREAD, thread, x=x, y=y, z=z, index=position, allocated=0)
        if checked:
            begin_thread(b, context, arena)
        with b.when(b.is_("!=", b.call(code.thread, [context, thread, i32(0)]), Status.EXIT), likely=False):
            record_thread(b, context, thread)
            b.ret(b.get(CONTEXT, context, "fault"))
    b.branch(begin)
    b.position_at_end(done)
    b.ret(i32(Fault.NONE))


def _run_warps(b: Builder, code: _Code, context: ir.Value, thread: ir.Value, block: list[ir.Value], area: int) -> None:
    """Run the threads of a block, whole warps at once where that can be."""
    assert code.warp is not None
    one = _build_one(b.module, code.thread)
    with b.goto_entry_block():
        saved = b.alloca(ir.ArrayType(I64, max(area, 8) // 8))
        saved.align = 64
        b.put(CONTEXT, context, saved=saved)
        b.put(THREAD, thread, function=ir.Constant(PTR, None), allocated=0)

    def run_one(number: ir.Value, point: ir.Value) -> None:
        _put_place(b, thread, number, block)
        with b.when(b.is_("!=", b.call(one, [context, thread, point]), Status.EXIT), likely=False):
            record_thread(b, context, thread)
            b.ret(b.get(CONTEXT, context, "fault"))

    threads = b.mul(b.mul(block[0], block[1]), block[2])
    warps = b.udiv(threads, i32(WARP_SIZE))
    with b.count(warps) as warp:
        first = b.mul(warp, i32(WARP_SIZE))
        _put_place(b, thread, first, block)
        returned = b.call(code.warp, [context, thread, i32(0)])
        with b.when(b.is_("!=", returned, Status.EXIT), likely=False):
            point = b.lshr(returned, i32(STATUS_BITS))
            with b.count(i32(WARP_SIZE)) as lane:
                run_one(b.add(first, lane), point)
    rest = b.mul(warps, i32(WARP_SIZE))
    with b.count(b.sub(threads, rest)) as place:
        run_one(b.add(rest, place), i32(0))


def _put_place(b: Builder, thread: ir.Value, number: ir.Value, block: list[ir.Value]) -> None:
    """Note which thread of its block a thread is."""
    row = b.udiv(number, block[0])
    b.put(
        THREAD,
        thread,
        x=b.urem(number, block[0]),
        y=b.urem(row, block[1]),
        z=b.udiv(row, block[1]),
        index=number,
        allocated=0,
    )


def _build_one(module: ir.Module, thread_function: ir.Function) -> ir.Function:
    """Return a function that the code for one thread is part of, once."""
    function = ir.Function(module, THREAD_FUNCTION, f"one.{thread_function.name}")
    function.linkage = "internal"
    function.attributes.add("noinline")
    b = Builder(function.append_basic_block("entry"))
    b.ret(b.call(thread_function, list(function.args)))
    return function
