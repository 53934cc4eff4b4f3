"""The structures and numbers that Python, the scheduler and compiled kernels share, and how code takes up a block or a thread."""

from __future__ import annotations

from enum import IntEnum

from llvmlite import ir

from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, PTR, Builder, Struct

OFFSET_BITS = 44
"""A device address is a segment's number above an offset of this many bits (16 TiB)."""
OFFSET_MASK = (1 << OFFSET_BITS) - 1
SEGMENT_COUNT = 1 << (64 - OFFSET_BITS)
MOST_CLUSTER_BLOCKS = 16
RANK_SHIFT = 26
"""Addresses of shared memory of a cluster have a block's rank plus one above so many bits of offset; 0 is the thread's own."""

WARP_SIZE = 32
BARRIER_COUNT = 16
FUEL = 4096
"""Loop rounds, and calls, after which a thread lets others run: it costs 1 % or so, and a spinning thread wastes some 10 µs."""


class Segment(IntEnum):
    """Segments with a fixed meaning. Segment 0 is never mapped, so that small and null addresses fault."""

    NULL = 0
    SHARED = 1
    LOCAL = 2
    PARAM = 3
    FUNCTION = 4
    TEXTURE = 5
    """Handles: the number of a texture or surface in its launch."""
    NOWHERE = 15
    """Never mapped: where an address leads that is in no block of the cluster."""
    CLUSTER = 16
    """From here on: shared memory of each block of the cluster at hand, by its rank."""
    FIRST_FREE = 2048
    """Those before it are each core's own: 64 KiB of the table, the largest page that there is."""
    HEAP = SEGMENT_COUNT // 2
    """From here on: what device code gets from ``malloc``, each with a segment of its own."""


class Status(IntEnum):
    """Why a thread's code returned. Those up to ``EXIT`` are also the thread's state from then on."""

    GO_ON = 0
    """It came to a point where its warp comes together; from there it goes on."""
    YIELD = 1
    """It spins: others are to run first, also those of its warp."""
    WARP = 2
    """It waits for the other threads of a warp operation."""
    EXIT = 3
    CALL = 4
    """A call or a return: the thread's top function changed."""
    BARRIER = 5
    ARRIVE = 6
    """It arrived at a barrier but does not wait."""
    PAUSE = 7
    """It sleeps, or went round a loop for long: other warps are to run, and then it goes on before others of its own."""
    FAULT = 8


STATUS_BITS = 4
"""What thread functions return is a ``Status`` in so many bits, and above them the point where the thread goes on."""


class ThreadState(IntEnum):
    """What a thread does. The scheduler runs those that are ``RUNNABLE``."""

    RUNNABLE = 0
    YIELDED = 1
    WARP = 2
    EXITED = 3
    BARRIER = 4


class Fault(IntEnum):
    """What stopped a launch."""

    NONE = 0
    STOPPED = 1
    LOAD = 2
    STORE = 3
    ATOMIC = 4
    TRAP = 5
    DEADLOCK = 6
    STACK = 7
    CALL = 8
    BARRIER = 9
    MEMBER = 10
    ASSERT = 11
    FREE = 12
    RACE = 13
    UNINITIALIZED = 14
    BULK = 15
    MATRIX = 16
    TENSOR = 17
    TEXTURE = 18
    SURFACE = 19


SEGMENT = Struct("Segment", base="ptr", size="i64", writable_size="i64", flags="i64")
"""One entry of the table of segments. ``writable_size`` is 0 where only reads are allowed."""

LAUNCH = Struct(
    "Launch",
    run="ptr",
    group_function="ptr",
    collectives="ptr",
    functions="ptr",
    arguments="ptr",
    arguments_size="i64",
    read_only="ptr",
    read_only_count="i64",
    grid_x="i32",
    grid_y="i32",
    grid_z="i32",
    block_x="i32",
    block_y="i32",
    block_z="i32",
    threads="i32",
    dynamic_shared="i32",
    shared_size="i64",
    thread_stride="i64",
    frame_stride="i64",
    local_stride="i64",
    block_stride="i64",
    threads_offset="i64",
    frames_offset="i64",
    locals_offset="i64",
    shared_offset="i64",
    resident_limit="i64",
    first_cluster="i64",
    cluster_step="i64",
    clusters="i64",
    cores="i64",
    cluster_x="i32",
    cluster_y="i32",
    cluster_z="i32",
    cluster_size="i32",
    grid_workspace="i64",
    is_explicit_cluster="i32",
    pad="i32",
    textures="ptr",
    texture_count="i64",
    saved_offset="i64",
    saved_stride="i64",
)
"""One launch, ready to run. Offsets are from the start of a block's part of the arena.

Clusters begin in the order ``first_cluster``, ``first_cluster + cluster_step``, … modulo ``clusters``, their number; without any,
each block is one by itself. ``cores`` is how many may run them. ``grid_workspace`` is the device address of what blocks of a
cooperative launch meet at, 0 in others. At ``saved_offset`` each warp has ``saved_stride`` bytes for its threads' registers."""

TEAM = Struct(
    "Team",
    next="i64",
    gate="i64",
    launch="ptr",
    faulty="ptr",
    cores="i64",
    stop="i32",
    closing="i32",
    joined="i32",
    launch_index="i32",
    semaphore="i64",
    semaphore_rest_0="i64",
    semaphore_rest_1="i64",
    semaphore_rest_2="i64",
)
"""What the cores share that run one launch: the place in the order of the cluster that begins next; the gate through which others
come to help, see ``cores.py``; the launch at hand; the context of the first core that faulted; whether to stop, and to end for
good; how often one has come to help; and a semaphore of the C library, on which they wait."""

TEXTURE = Struct(
    "Texture",
    base="ptr",
    width="i32",
    height="i32",
    depth="i32",
    layers="i32",
    slices="i32",
    dimensions="i32",
    geometry="i32",
    element="i32",
    element_bytes="i32",
    channels="i32",
    texel_bytes="i32",
    address="i32",
    is_linear="i32",
    is_normalized="i32",
    is_surface="i32",
    pad="i32",
)
"""A texture or surface of a launch. Extents that it lacks are 1; ``slices`` are its layers, or its depth."""


class TextureGeometry(IntEnum):
    """What a handle's instructions call ``1d`` to ``a2d``."""

    ONE = 1
    TWO = 2
    THREE = 3
    LAYERED_ONE = 4
    LAYERED_TWO = 5


class TextureElement(IntEnum):
    """The elements of texels, named as their dtypes."""

    UINT8 = 0
    UINT16 = 1
    UINT32 = 2
    INT8 = 3
    INT16 = 4
    INT32 = 5
    FLOAT16 = 6
    FLOAT32 = 7
    UNORM8 = 8
    UNORM16 = 9
    SNORM8 = 10
    SNORM16 = 11


class TextureAddress(IntEnum):
    """Address modes; the numbers are those that ``txq`` answers with."""

    WRAP = 0
    MIRROR = 1
    CLAMP = 3
    BORDER = 4


CONTEXT = Struct(
    "Context",
    table="ptr",
    team="ptr",
    launch="ptr",
    arena="ptr",
    resident="ptr",
    block="ptr",
    block_x="i32",
    block_y="i32",
    block_z="i32",
    fault="i32",
    site="i32",
    address="i64",
    thread_x="i32",
    thread_y="i32",
    thread_z="i32",
    launch_index="i32",
    assert_message="i64",
    assert_file="i64",
    assert_function="i64",
    assert_line="i32",
    pad="i32",
    printed="ptr",
    printed_size="i64",
    printed_used="i64",
    printed_lost="i64",
    heap_next="i64",
    heap_used="i64",
    heap_limit="i64",
    shadows="ptr",
    arena_shadow="ptr",
    ordered="ptr",
    blocks="i64",
    time="i32",
    run_time="i32",
    launch_time="i32",
    other_warp="i32",
    other_lane="i32",
    other_site="i32",
    other_writes="i32",
    random="i32",
    changes="i32",
    round="i32",
    pad_end="i32",
    call_at="i64",
    saved="ptr",
)
"""A core of a run: launch and block at hand and, once it has stopped, why and where. ``random`` is 0 where the order is fixed.
``changes`` counts stores that changed memory, in code that may spin. ``round`` is for the checks: when the threads at hand began
what they do together. ``call_at`` is when other cores are to be called, in the processor's cycles; 0: not any more.
``saved`` is where the registers of the warp at hand are while it is not run as a whole."""

THREAD = Struct(
    "Thread",
    state="i32",
    operation="i32",
    mask="i32",
    site="i32",
    x="i32",
    y="i32",
    z="i32",
    index="i32",
    function="ptr",
    frame="ptr",
    frame_end="ptr",
    locals="ptr",
    local="i64",
    allocated="i64",
    trace="i64",
    spins="i32",
    since="i32",
    phase="i32",
    pad="i32",
)
"""A thread. ``phase`` is that of its cluster's barrier when it arrived there.
``trace`` sums up what it knew when it last came round a loop, and ``spins`` counts how often that was the same.
``since`` is for the checks: when it last came to something that orders it with others. ``local`` is where the current function's
variables start; behind them are ``allocated`` bytes of ``alloca``.
What an operation exchanges with others follows it."""

BLOCK = Struct(
    "Block",
    x="i32",
    y="i32",
    z="i32",
    live="i32",
    idle="i32",
    number="i32",
    start="i32",
    since="i32",
    thread_start="i32",
    members="i32",
    leader="ptr",
    arrived="i32",
    phase="i32",
)
"""A resident block; its barriers follow. ``number`` to ``thread_start`` are for the checks: its number in the grid, and the times
at which it began, completed its last barrier, and began the thread at hand. ``leader`` is the first block of its cluster,
the others follow it; it has how many ``members`` have not ended and, of the cluster's barrier, how many threads have arrived and
how often it was completed."""
WARP = Struct(
    "Warp", runnable="i32", yielded="i32", waiting="i32", present="i32", together="i32", waited="i32", whole_at="i32", pad="i32"
)
"""A warp of a resident block: masks of its threads that can run, let others run, wait for a warp operation, and have not ended;
whether all that have not are at one place; for how long some of them have waited for others; and one more than the
barrier at which they wait as a whole, if they do: then only the first of them says how."""
BARRIER = Struct("Barrier", arrived="i32", expected="i32", population="i32", all="i32", any="i32", pad="i32")
"""``expected`` is 0 for every thread that has not exited."""

FRAME = Struct("Frame", resume="i32", pad="i32", function="ptr", frame="ptr", local="i64", allocated="i64")
"""The head of a function's frame: where to resume, and the caller. Saved registers follow."""

FUNCTION = Struct("Function", code="ptr", frame_size="i64", local_size="i64", parameter_size="i64", result_size="i64")
"""An entry of the table of functions that can be called."""

THREAD_FUNCTION = ir.FunctionType(I32, [PTR, PTR, I32])
"""Code of a thread: context, thread and the point where to go on, to a ``Status`` and the next point."""
GROUP_FUNCTION = ir.FunctionType(I32, [PTR, PTR, I32, I32, I32])
"""Code of threads of a warp that go on together: context, the warp's first thread, their mask, the point where they are, and a
limit. They run until they part, wait, or come to a point not below the limit. Returns a set of ``Status``, as bits."""
WARP_POINTS = 1 << 24
"""Points from here on are those of code for whole warps."""
EXHAUSTED, UNITED, WHOLE = 1 << 16, 1 << 17, 1 << 18
"""Among what a group function returns: the threads went on together for long; they are at one place in the end; they
came there as a whole."""
COLLECTIVE = ir.FunctionType(ir.VoidType(), [PTR, ir.IntType(64), I32])
"""A warp operation: the warp's first thread, the distance between threads, and the mask of those that take part."""
PRINTED = Struct("Printed", format="i64", size="i64")
"""One call of ``vprintf``: where its format is, and how many bytes of arguments follow."""
PRINTED_ARGUMENTS = 256
"""Most bytes of arguments: 32 of them, as in CUDA."""

SHADOW = Struct("Shadow", cells="ptr", watched="i64")
"""What the checks know of a segment: the notes of its bytes, and whether nothing is written in it at first."""
NOTE = Struct("Note", time="i32", warp="i32", lane="i32", site="i32")
"""An access: when, by which warp of the grid and lane, and where in the kernel."""
CELL_BYTES = 3 * NOTE.size
"""Of notes, for each byte."""

RUN = ir.FunctionType(I32, [PTR])
"""Runs all blocks of the launch at hand: context to ``Fault``."""

BLOCK_HEAD = BLOCK.size + BARRIER_COUNT * BARRIER.size
"""Bytes before a block's warps. Its threads follow those."""


def stopped(b: Builder, context: ir.Value) -> ir.Value:
    """Whether another thread asked the run to stop, or a core has faulted."""
    team = b.get(CONTEXT, context, "team")
    return b.is_("!=", b.load_atomic(b.field(TEAM, team, "stop"), "monotonic", 4, typ=I32), 0)


def segment_entry(b: Builder, context: ir.Value, segment: int) -> ir.Value:
    return b.item(b.get(CONTEXT, context, "table"), SEGMENT.ir, segment)


def enter_block(b: Builder, context: ir.Value, x: ir.Value, y: ir.Value, z: ir.Value, shared: ir.Value) -> None:
    """Make a block the one at hand."""
    b.put(CONTEXT, context, block_x=x, block_y=y, block_z=z)
    size = b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "shared_size")
    b.put(SEGMENT, segment_entry(b, context, Segment.SHARED), base=shared, size=size, writable_size=size)


def enter_cluster(b: Builder, context: ir.Value, block: ir.Value) -> None:
    """Make the shared memory of a block's cluster, if it has more than one, that which is at hand."""
    launch = b.get(CONTEXT, context, "launch")
    blocks, stride = b.get(LAUNCH, launch, "cluster_size"), b.get(LAUNCH, launch, "block_stride")
    with b.when(b.is_(">", blocks, 1), likely=False):
        first = b.at(b.get(BLOCK, block, "leader"), b.get(LAUNCH, launch, "shared_offset"))
        size, entries = b.get(LAUNCH, launch, "shared_size"), segment_entry(b, context, Segment.CLUSTER)
        with b.count(b.zext(blocks, I64)) as rank:
            entry = b.item(entries, SEGMENT.ir, rank)
            b.put(SEGMENT, entry, base=b.at(first, b.mul(rank, stride)), size=size, writable_size=size)


def enter_thread(b: Builder, context: ir.Value, local: ir.Value) -> None:
    """Make a thread's local memory the one at hand."""
    size = b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "local_stride")
    b.put(SEGMENT, segment_entry(b, context, Segment.LOCAL), base=local, size=size, writable_size=size)


def record_thread(b: Builder, context: ir.Value, thread: ir.Value) -> None:
    """Note which thread faulted."""
    b.put(CONTEXT, context, **{f"thread_{axis}": b.get(THREAD, thread, axis) for axis in "xyz"})


def exchange(b: Builder, thread: ir.Value) -> ir.Value:
    """Where a thread leaves what an operation needs of it and finds what it returns."""
    return b.at(thread, THREAD.size)
