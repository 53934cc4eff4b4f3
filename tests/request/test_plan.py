"""Plans: what is loaded, zeroed and stored, what is launched, and what does not fit a kernel or a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from kaas_core.errors import InvalidRequestError
from kaas_core.request import (
    Access,
    Argument,
    BufferArgument,
    BufferSpec,
    KernelSpec,
    Literal,
    Packed,
    PackedBuffer,
    Request,
    TextureArgument,
)
from kaas_core.texture import Texture
from kaasd.request.device_checks import DeviceProperties, KernelAttributes, LaunchAttributes, max_cluster_blocks
from kaasd.request.plan import (
    KernelKey,
    Layout,
    PackedSlots,
    Plan,
    PlannedLaunch,
    Slot,
    SlotArgument,
    TextureSlot,
    make_plan,
    rebind,
)

DEVICE = DeviceProperties(
    name="test",
    model="none",
    memory_bytes=1 << 30,
    max_threads_per_block=256,
    max_block=(256, 128, 64),
    max_grid=(1000, 100, 10),
    max_shared_memory_bytes=4096,
)
SIZES = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "q": 8, "Q": 8, "e": 2, "f": 4, "d": 8}


def size_of(argument: Argument) -> int:
    if isinstance(argument, Packed):
        return len(argument.data)
    return SIZES[argument.type] if isinstance(argument, Literal) else 8


def fitting(request: Request) -> dict[KernelKey, KernelAttributes]:
    """Return attributes of kernels that take just what the request gives."""
    return {
        (kernel.library, kernel.name): KernelAttributes(kernel.name, tuple(map(size_of, kernel.arguments)), 0, 256)
        for kernel in request.kernels
    }


def in_structs(request: Request) -> Request:
    """Return the request with the buffers of each launch in one packed argument."""
    kernels = []
    for kernel in request.kernels:
        uses = [argument for argument in kernel.arguments if isinstance(argument, BufferArgument)]
        packed = Packed(bytes(8 * len(uses)), tuple(PackedBuffer(8 * index, use) for index, use in enumerate(uses)))
        kernels.append(replace(kernel, arguments=(packed,)))
    return replace(request, kernels=tuple(kernels))


def launches(buffers: Sequence[BufferSpec], *accesses: str) -> Request:
    """Return a request of one launch a string, which names uses as ``x:i y:o``."""
    kernels = []
    for index, line in enumerate(accesses):
        pairs = (use.split(":") for use in line.split())
        arguments = tuple(BufferArgument(name, Access(letter)) for name, letter in pairs)
        kernels.append(KernelSpec("/k.ptx", f"k{index}", (1, 1, 1), (1, 1, 1), arguments))
    return Request(tuple(kernels), tuple(buffers))


def plan_of(request: Request, attributes: Mapping[KernelKey, KernelAttributes] | None = None) -> Plan:
    return make_plan(request, attributes or fitting(request), DEVICE, lambda kernel: 24)


@pytest.mark.parametrize(
    ("accesses", "offset", "load", "store", "whole"),
    [
        (["x:i"], 0, True, False, None),
        (["x:o"], 0, False, True, True),
        (["x:io"], 0, True, True, False),
        (["x:o"], 8, False, True, False),
        (["x:io"], 8, True, True, False),
        (["x:o", "x:i"], 0, False, True, True),
        (["x:o", "x:io"], 0, False, True, True),
        (["x:i", "x:o"], 0, True, True, False),
        (["x:o x:i"], 0, True, True, False),
        (["x:i", "x:t"], 0, True, False, None),
        (["x:t x:o"], 0, False, True, True),
    ],
)
def test_first_use_decides(accesses: list[str], offset: int, load: bool, store: bool, whole: bool | None) -> None:
    request = launches([BufferSpec("x", 16, offset_bytes=offset)], *accesses)
    (slot,) = plan_of(request).slots
    assert (slot.load, slot.store) == (load, store)
    if store:
        assert slot.whole is whole
    assert plan_of(in_structs(request)).slots == (slot,)


@pytest.mark.parametrize("accesses", [["x:t"], ["x:i"], ["x:o"], ["x:io"], ["x:t", "x:io"]])
def test_an_ephemeral_buffer_is_neither_loaded_nor_stored(accesses: list[str]) -> None:
    (slot,) = plan_of(launches([BufferSpec("x", 16, ephemeral=True)], *accesses)).slots
    assert (slot.load, slot.store) == (False, False)


def test_a_device_of_which_nothing_else_is_said_is_an_h100() -> None:
    """Figures of the CUDA C++ Programming Guide for compute capability 9.0, and of the H100 SXM5's data sheet."""
    assert DeviceProperties("any", "any", 1) == DeviceProperties(
        name="any",
        model="any",
        memory_bytes=1,
        compute_capability=(9, 0),
        multiprocessor_count=132,
        warp_size=32,
        max_threads_per_block=1024,
        max_block=(1024, 1024, 64),
        max_grid=(2147483647, 65535, 65535),
        max_shared_memory_bytes=232448,
    )


def test_lowering() -> None:
    a, unused, p, c = BufferSpec("a", 4096), BufferSpec("u", 1), BufferSpec("p", 4096, ephemeral=True), BufferSpec("c", 4)
    product = KernelSpec(
        "/dot.ptx",
        "prod",
        (2, 1, 1),
        (128, 2, 1),
        (
            Literal("Q", 1024),
            Literal("h", -2),
            Literal("f", 1.5),
            Literal("d", 1),
            BufferArgument("a", Access.INPUT),
            BufferArgument("p", Access.TEMPORARY),
        ),
        shared_memory_bytes=64,
    )
    total = KernelSpec(
        "/dot.ptx", "sum", (1, 1, 1), (256, 1, 1), (BufferArgument("c", Access.OUTPUT), BufferArgument("p", Access.INPUT))
    )
    plan = plan_of(Request((product, total), (unused, c, p, a), iterations=5))
    assert plan == Plan(
        slots=(
            Slot(a, load=True, store=False, reads=True, whole=False),
            Slot(p, load=False, store=False, reads=False, whole=True),
            Slot(c, load=False, store=True, reads=False, whole=True),
        ),
        launches=(
            PlannedLaunch(
                ("/dot.ptx", "prod"),
                (2, 1, 1),
                (128, 2, 1),
                64,
                (
                    b"\x00\x04\0\0\0\0\0\0",
                    b"\xfe\xff",
                    b"\0\0\xc0\x3f",
                    b"\0\0\0\0\0\0\xf0\x3f",
                    SlotArgument(0, Access.INPUT),
                    SlotArgument(1, Access.TEMPORARY),
                ),
            ),
            PlannedLaunch(
                ("/dot.ptx", "sum"),
                (1, 1, 1),
                (256, 1, 1),
                0,
                (SlotArgument(2, Access.OUTPUT), SlotArgument(1, Access.INPUT)),
            ),
        ),
        iterations=5,
    )
    assert plan.slot_index == {"a": 0, "p": 1, "c": 2}
    assert plan.device_bytes == 4096 + 4096 + 4


FITTING = KernelSpec(
    "/k.ptx", "k", (10, 10, 10), (16, 16, 1), (Literal("i", 1), BufferArgument("x", Access.INPUT)), shared_memory_bytes=1024
)
TAKES = KernelAttributes("k", (4, 8), static_shared_memory_bytes=3072, max_threads_per_block=256, required_block=(16, 16, 1))


def test_the_limits_themselves_are_allowed() -> None:
    kernel = replace(FITTING, grid=(1000, 100, 10))
    plan = plan_of(Request((kernel,), (BufferSpec("x", 1),)), {("/k.ptx", "k"): TAKES})
    assert plan.launches[0].grid == (1000, 100, 10)


def plan_of_one(kernel: KernelSpec, attributes: KernelAttributes, device: DeviceProperties = DEVICE, active: int = 24) -> Plan:
    request = Request((kernel,), (BufferSpec("x", 1),))
    return make_plan(request, {("/k.ptx", "k"): attributes}, device, lambda kernel: active)


@pytest.mark.parametrize(
    ("kernel", "attributes", "expected"),
    [
        ({}, {}, LaunchAttributes()),
        ({"cluster": (5, 2, 1)}, {}, LaunchAttributes(cluster=(5, 2, 1))),
        ({"cluster": (1, 1, 1)}, {"needs_cluster": True}, LaunchAttributes(cluster=(1, 1, 1))),
        ({"cluster": (2, 1, 1)}, {"max_cluster_blocks": 2}, LaunchAttributes(cluster=(2, 1, 1))),
        # A cluster that the kernel is compiled for comes by itself.
        ({}, {"cluster": (5, 1, 1)}, LaunchAttributes()),
        ({"cluster": (5, 1, 1)}, {"cluster": (5, 1, 1)}, LaunchAttributes()),
        ({"cooperative": True, "grid": (24, 1, 1)}, {}, LaunchAttributes(cooperative=True)),
        ({"programmatic_dependent_launch": True}, {}, LaunchAttributes(programmatic=True)),
    ],
)
def test_launch_attributes(kernel: dict[str, Any], attributes: dict[str, Any], expected: LaunchAttributes) -> None:
    plan = plan_of_one(replace(FITTING, **kernel), replace(TAKES, **attributes))
    assert plan.launches[0].attributes == expected


@pytest.mark.parametrize(
    ("kernel", "attributes", "device", "field", "fragment"),
    [
        ({}, {"needs_cluster": True}, {}, "cluster", "is required: kernel 'k' is compiled for clusters, of any size"),
        ({"cluster": (2, 1, 1)}, {"cluster": (5, 1, 1)}, {}, "cluster", "compiled for a cluster of (5, 1, 1), not (2, 1, 1)"),
        ({"cluster": (1, 3, 1)}, {}, {}, "grid[1]", "10 blocks are no multiple of the 3 of a cluster"),
        ({}, {"cluster": (1, 1, 4)}, {}, "grid[2]", "10 blocks are no multiple of the 4 of a cluster"),
        ({"cluster": (10, 2, 1)}, {}, {}, "cluster", "device test allows at most 16 blocks in a cluster, not 20"),
        ({"cluster": (5, 1, 1)}, {"max_cluster_blocks": 4}, {}, "cluster", "allows at most 4 blocks in a cluster, not 5"),
        (
            {"cluster": (2, 1, 1)}, {}, {"max_cluster_blocks": 1}, "cluster",
            "device test has no thread block clusters, which need compute capability 9.0",
        ),
        (
            {"programmatic_dependent_launch": True}, {}, {"compute_capability": (8, 6)}, "programmatic_dependent_launch",
            "needs compute capability 9.0, and device test has 8.6",
        ),
        (
            {"cooperative": True}, {}, {}, "grid",
            "device test runs at most 24 blocks of this cooperative launch at once, not 1000",
        ),
        ({"cluster": (5, 1, 1)}, {"parameter_size_bytes": None}, {}, "cluster", "function 'k' is host code"),
        ({"cooperative": True}, {"parameter_size_bytes": None}, {}, "cooperative", "function 'k' is host code"),
        (
            {"programmatic_dependent_launch": True}, {"parameter_size_bytes": None}, {}, "programmatic_dependent_launch",
            "function 'k' is host code",
        ),
    ],
)  # fmt: skip
def test_launch_attributes_that_do_not_fit(
    kernel: dict[str, Any], attributes: dict[str, Any], device: dict[str, Any], field: str, fragment: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plan_of_one(replace(FITTING, **kernel), replace(TAKES, **attributes), replace(DEVICE, **device))
    (violation,) = caught.value.violations
    assert violation.field == f"kernels[0].{field}"
    assert fragment in violation.description


@pytest.mark.parametrize(("capability", "blocks"), [((7, 5), 1), ((8, 9), 1), ((9, 0), 16), ((10, 0), 16), ((12, 0), 8)])
def test_most_blocks_of_a_cluster(capability: tuple[int, int], blocks: int) -> None:
    assert max_cluster_blocks(capability) == blocks


def test_a_cluster_that_the_device_has_no_room_for() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plan_of_one(replace(FITTING, cluster=(5, 1, 1)), TAKES, active=0)
    (violation,) = caught.value.violations
    assert violation.field == "kernels[0].cluster"
    assert "cannot run 5 blocks of this size and shared memory at once" in violation.description


def test_host_code_takes_any_arguments() -> None:
    arguments = (Literal("b", 1), BufferArgument("x", Access.INPUT), Literal("d", 2))
    plan = plan_of(
        Request((replace(FITTING, arguments=arguments),), (BufferSpec("x", 1),)),
        {("/k.ptx", "k"): replace(TAKES, parameter_size_bytes=None)},
    )
    assert plan.launches[0].arguments == (b"\x01", SlotArgument(0, Access.INPUT), b"\0\0\0\0\0\0\0\x40")


@pytest.mark.parametrize(
    ("kernel", "attributes", "expected"),
    [
        (replace(FITTING, arguments=()), TAKES, [("arguments", "takes 2 arguments, but 0 are given")]),
        (
            replace(FITTING, arguments=(*FITTING.arguments, Literal("i", 1))),
            TAKES,
            [("arguments", "takes 2 arguments, but 3 are given")],
        ),
        (
            FITTING,
            replace(TAKES, parameter_size_bytes=(8, 4)),
            [
                ("arguments[0]", "takes 8 bytes here, but a literal of type 'i' has 4"),
                ("arguments[1]", "takes 4 bytes here, but the address of buffer 'x' has 8"),
            ],
        ),
        (FITTING, replace(TAKES, parameter_size_bytes=(4, 320)), [("arguments[1]", "takes 320 bytes")]),
        (
            replace(
                FITTING, arguments=(Packed(bytes(4)), Packed(bytes(16), (PackedBuffer(8, BufferArgument("x", Access.INPUT)),)))
            ),
            replace(TAKES, parameter_size_bytes=(4, 24), parameter_alignment_bytes=(1, 8)),
            [("arguments[1]", "takes 24 bytes here, but the packed argument has 16")],
        ),
        (
            replace(
                FITTING, arguments=(Packed(bytes(4)), Packed(bytes(8), (PackedBuffer(0, BufferArgument("x", Access.INPUT)),)))
            ),
            replace(TAKES, parameter_alignment_bytes=(4, 4)),
            [("arguments[1].buffers[0]", "aligns its parameter to 4 bytes here, so that no address can be in it")],
        ),
        (replace(FITTING, grid=(1001, 1, 1)), replace(TAKES, parameter_size_bytes=None), [("grid[0]", "at most 1000, not 1001")]),
        (replace(FITTING, grid=(1001, 1, 11)), TAKES, [("grid[0]", "at most 1000, not 1001"), ("grid[2]", "at most 10")]),
        (
            replace(FITTING, block=(1, 1, 65)),
            replace(TAKES, required_block=None),
            [("block[2]", "device test allows at most 64, not 65")],
        ),
        (
            replace(FITTING, block=(16, 17, 1)),
            replace(TAKES, required_block=None),
            [("block", "device test allows at most 256 threads in a block, not 272")],
        ),
        (
            FITTING,
            replace(TAKES, max_threads_per_block=255),
            [("block", "kernel 'k' allows at most 255 threads in a block, not 256")],
        ),
        (replace(FITTING, block=(16, 8, 2)), TAKES, [("block", "requires a block of (16, 16, 1), not (16, 8, 2)")]),
        (
            replace(FITTING, shared_memory_bytes=1025),
            TAKES,
            [("shared_memory_bytes", "at most 4096 bytes of shared memory in a block, not 4097 (3072 static and 1025 dynamic)")],
        ),
    ],
)
def test_what_does_not_fit(kernel: KernelSpec, attributes: KernelAttributes, expected: list[tuple[str, str]]) -> None:
    first = KernelSpec("/k.ptx", "other", (1, 1, 1), (1, 1, 1))
    known = {("/k.ptx", "k"): attributes, ("/k.ptx", "other"): KernelAttributes("other", (), 0, 1024)}
    with pytest.raises(InvalidRequestError) as caught:
        plan_of(Request((first, kernel), (BufferSpec("x", 1),)), known)
    assert [violation.field for violation in caught.value.violations] == [f"kernels[1].{path}" for path, _ in expected]
    for violation, (_, fragment) in zip(caught.value.violations, expected, strict=True):
        assert fragment in violation.description


def test_packed_arguments_are_lowered_to_slots_among_bytes() -> None:
    buffers = (PackedBuffer(8, BufferArgument("y", Access.OUTPUT)), PackedBuffer(0, BufferArgument("x", Access.INPUT)))
    arguments = (Packed(b"0123456789abcdefg", buffers), Packed(b"z"))
    request = Request((replace(FITTING, arguments=arguments),), (BufferSpec("x", 1), BufferSpec("y", 1)))
    attributes = replace(TAKES, parameter_size_bytes=(17, 1), parameter_alignment_bytes=(8, 1))
    plan = plan_of(request, {("/k.ptx", "k"): attributes})
    y, x = SlotArgument(0, Access.OUTPUT), SlotArgument(1, Access.INPUT)
    assert plan.launches[0].arguments == (PackedSlots(b"0123456789abcdefg", ((8, y), (0, x))), PackedSlots(b"z", ()))
    assert list(plan.launches[0].slots) == [y, x]


def test_textures_are_lowered_to_slots_that_are_seen() -> None:
    image, other = Texture("uint8", 4, (4,)), Texture("float32", 1, (4,))
    arguments = (
        TextureArgument("x", Access.INPUT, image),
        TextureArgument("x", Access.INPUT, other),
        TextureArgument("y", Access.INOUT, image),
    )
    kernel = replace(FITTING, arguments=arguments)
    request = Request((kernel, kernel), (BufferSpec("x", 16), BufferSpec("y", 16)))
    plan = plan_of(request, {("/k.ptx", "k"): replace(TAKES, parameter_size_bytes=(8, 8, 8))})
    x, y = SlotArgument(0, Access.INPUT), SlotArgument(1, Access.INOUT)
    assert plan.launches[1].arguments == (TextureSlot(x, image), TextureSlot(x, other), TextureSlot(y, image))
    assert list(plan.launches[0].slots) == [x, x, y]
    assert plan.textures == (image, other, image)
    assert [(slot.load, slot.store) for slot in plan.slots] == [(True, False), (True, True)]
    assert Layout.of(plan).downloaded == (1,)


@pytest.mark.parametrize("keep_stored", [False, True])
def test_buffers_in_structs_are_laid_out_as_others(keep_stored: bool) -> None:
    sizes = {"small": 16, "large": 1 << 20, "out": 1 << 20, "both": 1 << 20, "tiny": 4}
    request = launches(
        [BufferSpec(name, size) for name, size in sizes.items()], "small:i large:i out:o both:io tiny:o", "out:i small:i"
    )
    packed = in_structs(request)
    assert Layout.of(plan_of(packed), keep_stored=keep_stored) == Layout.of(plan_of(request), keep_stored=keep_stored)


SEVERAL = launches(
    [BufferSpec("x", 8), BufferSpec("y", 8), BufferSpec("z", 8, key="k", offset_bytes=8), BufferSpec("t", 8, ephemeral=True)],
    "x:i y:o z:o t:t",
)


def test_rebinding_changes_the_keys_alone() -> None:
    plan = plan_of(SEVERAL)
    bound = rebind(plan, {"x": "input", "z": "other"})
    assert [slot.spec.store_key for slot in bound.slots] == ["input", "y", "other", "t"]
    assert [(slot.load, slot.store, slot.whole) for slot in bound.slots] == [
        (slot.load, slot.store, slot.whole) for slot in plan.slots
    ]
    assert bound.launches == plan.launches
    assert [slot.spec.store_key for slot in plan.slots] == ["x", "y", "k", "t"]
    assert rebind(plan, {}) is plan


@pytest.mark.parametrize(
    ("keys", "field", "fragment"),
    [
        ({"w": "k"}, "bindings['w']", "no kernel uses"),
        ({"t": "k"}, "bindings['t']", "ephemeral"),
        ({"x": ""}, "bindings['x']", "must not be empty"),
        ({"x": "k" * 401}, "bindings['x']", "at most 400 bytes"),
        ({"y": "k"}, "bindings['y']", "same bytes of key 'k'"),
        ({"z": "y"}, "bindings['z']", "same bytes of key 'y'"),
    ],
)
def test_bad_bindings(keys: dict[str, str], field: str, fragment: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        rebind(plan_of(SEVERAL), keys)
    (violation,) = caught.value.violations
    assert violation.field == field
    assert fragment in violation.description


def test_an_input_may_read_the_key_that_an_output_replaces() -> None:
    bound = rebind(plan_of(SEVERAL), {"x": "y"})
    assert [slot.spec.store_key for slot in bound.slots][:2] == ["y", "y"]
