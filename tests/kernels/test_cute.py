"""CuTe DSL: what its host functions launch, and their kernels on the emulated device."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import cutlass
import numpy as np
import pytest
from cutlass.cute import runtime
from cutlass.cutlass_dsl import CuTeDSL

from examples.local_daemon import local_daemon
from kaas_client import Client, Packed, inout, inp, out
from kaas_client.builders import Kernel
from kaas_client.forms import Form
from kaas_client.kernels import CompileError, LayoutError, cuda, cute
from kaas_client.kernels._cute import dtype_of, host_types, launched_types, layout_of, struct_leaves
from kaas_core.errors import InvalidRequestError
from tests.kernels import cute_kernels, sources

VECTORS = {name: Form(np.dtype("f4"), (600,)) for name in "xy"}
MATRICES = {"x": Form(np.dtype("f4"), (60, 40)), "y": Form(np.dtype("f4"), (40, 60))}


def saxpy() -> Any:
    return cute(cute_kernels.saxpy, 1.0, cute_kernels.vector(), cute_kernels.vector())


def transpose() -> Any:
    return cute(cute_kernels.transpose, cute_kernels.matrix(), cute_kernels.matrix())


def parameters(kernel: Kernel) -> list[tuple[bytes, list[tuple[int, str]]]]:
    """Return bytes and buffers of each parameter, with zeros where addresses go."""
    found = []
    for each in kernel.args:
        assert isinstance(each, Packed)
        data = bytearray(each.data)
        for offset, _ in each.buffers:
            data[offset : offset + 8] = bytes(8)
        found.append((bytes(data), [(offset, buffer.name) for offset, buffer in each.buffers]))
    return found


class TestCompiled:
    def test_what_is_made(self) -> None:
        made = saxpy().compile(target="sm_90a")
        assert (made.target, made.block, made.compiler) == ("sm_90a", (128, 1, 1), f"CuTe DSL {cutlass.__version__}")
        assert [(each.size_bytes, each.role) for each in made.parameters] == [
            (4, "value"), (16, "struct"), (16, "struct"), (4, "value"),
        ]  # fmt: skip
        assert made.image.lstrip().startswith(b"//") and made.ptx_version >= 80

    def test_a_launch_is_what_its_host_function_says(self) -> None:
        kernel = saxpy()(2.0, inp("x"), inout("y")).kernel("library", VECTORS)
        assert (kernel.grid, kernel.block, kernel.shared_memory_bytes, kernel.cluster) == ((5, 1, 1), (128, 1, 1), 0, None)
        size = (600).to_bytes(4, "little")
        assert parameters(kernel) == [
            (np.float32(2).tobytes(), []),
            (bytes(8) + size + bytes(4), [(0, "x")]),
            (bytes(8) + size + bytes(4), [(0, "y")]),
            (size, []),
        ]

    def test_layouts_that_the_host_function_makes(self) -> None:
        CuTeDSL.print_warning_once.cache_clear()  # It warns once in a process, whatever has run before in it.
        with pytest.warns(UserWarning, match="Dynamic variable in block size"):
            compiled = transpose().compile()
        kernel = compiled(inp("x"), inout("y")).kernel("library", MATRICES)
        assert (kernel.grid, kernel.block, compiled.block) == ((60, 1, 1), (64, 1, 1), None)
        shape, rest = np.int32([60, 40]).tobytes(), bytes(4)
        assert parameters(kernel)[0] == (bytes(8) + shape + np.int64(40).tobytes(), [(0, "x")])
        assert parameters(kernel)[1] == (bytes(8) + shape + np.int32(60).tobytes() + rest, [(0, "y")])

    def test_cluster_shared_memory_and_dependent_launch(self) -> None:
        clustered = cute(cute_kernels.clustered, cute_kernels.vector(), cute_kernels.vector(), 1).compile(target="sm_90")
        kernel = clustered(inp("x"), inout("y"), 200).kernel("library", VECTORS)
        assert (kernel.grid, kernel.block, kernel.cluster) == ((4, 1, 1), (64, 1, 1), (2, 1, 1))
        assert (kernel.shared_memory_bytes, kernel.programmatic_dependent_launch, kernel.cooperative) == (256, True, False)

    def test_constants_and_streams_are_not_passed(self) -> None:
        fixed = runtime.make_fake_compact_tensor(cutlass.Int32, (64,), assumed_align=16)
        reverse = cute(cute_kernels.reverse, fixed, fixed, 64, runtime.make_fake_stream())
        kernel = reverse(inp("x"), out("y")).kernel("library", {name: Form(np.dtype("i4"), (64,)) for name in "xy"})
        assert [getattr(each, "name", None) for each in kernel.args] == ["x", "y"]
        assert kernel.shared_memory_bytes >= 256

    def test_a_function_launches_one_kernel(self) -> None:
        matrix = cute_kernels.matrix()
        with pytest.raises(CompileError, match=r"twice launches 2 kernels: give each a function with @cute\.jit of its own"):
            cute(cute_kernels.twice, matrix, matrix).compile()
        vector = cute_kernels.vector()
        perhaps = cute(cute_kernels.perhaps, vector, vector, 1)
        assert perhaps(inp("x"), inout("y"), 1).kernel("library", VECTORS).grid == (1, 1, 1)
        with pytest.raises(InvalidRequestError, match=r"kernels\[0\]: its host function launches 0 kernels"):
            perhaps(inp("x"), inout("y"), 0).kernel("library", VECTORS)

    def test_an_address_that_is_computed_with(self) -> None:
        shifted = cute(cute_kernels.shifted, cute_kernels.vector(), cute_kernels.vector())
        with pytest.raises(InvalidRequestError, match=r"kernels\[0\]: its host function computes with an address"):
            shifted(inp("x"), inout("y")).kernel("library", VECTORS)

    def test_errors_of_the_compiler(self) -> None:
        with pytest.raises(CompileError, match=r"saxpy: CuTe DSL, for sm_61: KeyError"):
            saxpy().compile(target="sm_61")
        with pytest.raises(CompileError, match=r"its PTX has version 8\.\d, and the device takes at most 8\.0"):
            saxpy().compile(ptx_version=80)
        with pytest.raises(CompileError, match="wrong: CuTe DSL, for sm_80: DSL"):
            cute(cute_kernels.wrong, cute_kernels.vector()).compile()


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            ((2.0, inp("x")), InvalidRequestError, r"arguments: it takes a, x, y: 3, not 2"),
            ((2.0, 5, inout("y")), TypeError, r"arguments\[1\]: parameter 'x' is a tensor, and takes inp"),
            ((inp("x"), inp("x"), inout("y")), TypeError, r"arguments\[0\]: parameter 'a' is a number"),
            ((2.0, inp("none"), inout("y")), InvalidRequestError, r"arguments\[1\]: buffer 'none' needs a dtype and a shape"),
            (
                (2.0, inp("x", dtype="f8", shape=3), inout("y")),
                InvalidRequestError,
                r"1 dimensions of float32, and buffer 'x' is",
            ),
        ],
    )
    def test_wrong_ones(self, arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
        forms = {"y": VECTORS["y"]} | {"x": Form(np.dtype("f8"), (3,)) if "float32" in words else VECTORS["x"]}
        with pytest.raises(error, match=words):
            saxpy()(*arguments).kernel("library", forms)

    def test_sizes_that_were_promised(self) -> None:
        both = cute_kernels.vector(divisibility=16)
        copies = cute(cute_kernels.saxpy, 1.0, both, both)
        with pytest.raises(
            InvalidRequestError, match=r"arguments\[1\]: shape\[0\] is promised to be divisible by 16, and buffer 'x'"
        ):
            copies(2.0, inp("x"), inout("y")).kernel("library", VECTORS)
        sizes = {"x": Form(np.dtype("f4"), (32,)), "y": Form(np.dtype("f4"), (64,))}
        with pytest.raises(InvalidRequestError, match=r"arguments\[2\]: shape\[0\] is 32 in another tensor, and buffer 'y'"):
            copies(2.0, inp("x"), inout("y")).kernel("library", sizes)

    def test_sizes_and_strides_that_are_compiled(self) -> None:
        fixed = runtime.make_fake_compact_tensor(cutlass.Float32, (4, 8), stride_order=(1, 0), assumed_align=4)
        compiled = cute(cute_kernels.transpose, fixed, cute_kernels.matrix())
        other = MATRICES | {"x": Form(np.dtype("f4"), (4, 9))}
        with pytest.raises(
            InvalidRequestError, match=r"shape\[1\] is compiled to be 8, and buffer 'x' is float32 of shape \[4, 9\]"
        ):
            compiled(inp("x"), inout("y")).kernel("library", other)
        turned = MATRICES | {"x": Form(np.dtype("f4"), (4, 8), fortran_order=True)}
        with pytest.raises(InvalidRequestError, match=r"stride\[0\] is compiled to be 8, and buffer 'x' .* in Fortran's order"):
            compiled(inp("x"), inout("y")).kernel("library", turned)

    def test_examples_that_cannot_be_passed(self) -> None:
        with pytest.raises(TypeError, match="saxpy: missing a required argument: 'y'"):
            cute(cute_kernels.saxpy, 1.0, cute_kernels.vector())
        array = runtime.from_dlpack(np.zeros(8, np.float32))
        with pytest.raises(TypeError, match=r"argument 'x' is _?Tensor; its example can be a number"):
            cute(cute_kernels.saxpy, 1.0, array, cute_kernels.vector()).compile()
        aligned = runtime.make_fake_tensor(cutlass.Float32, (8,), stride=(1,), assumed_align=1024)
        with pytest.raises(TypeError, match="argument 'x' is promised to be aligned to 1024 bytes"):
            cute(cute_kernels.saxpy, 1.0, aligned, cute_kernels.vector()).compile()

    def test_square_brackets_are_left_out(self) -> None:
        with pytest.raises(InvalidRequestError, match=r"kernels\[0\]\.grid: the kernel's compiler chooses grid and block"):
            saxpy()[4](2.0, inp("x"), inout("y")).kernel("library", VECTORS)
        with pytest.raises(InvalidRequestError, match=r"kernels\[0\]\.grid: say how many blocks there are"):
            cuda(source=sources.CUDA)["plain"](inp("x")).kernel("library", {})


class TestLayouts:
    def test_structs_lie_as_ctypes_lays_them(self) -> None:
        class Inner(ctypes.Structure):
            _fields_ = (("a", ctypes.c_int32), ("b", ctypes.c_int64))

        class Outer(ctypes.Structure):
            _fields_ = (("p", ctypes.c_void_p), ("n", ctypes.c_int32), ("inner", Inner), ("k", ctypes.c_int16 * 3))

        layout = layout_of("!llvm.struct<(ptr<1>, i32, struct<(i32, i64)>, array<3 x i16>)>")
        assert layout.size_bytes == ctypes.sizeof(Outer)
        begin, k = Outer.inner.offset, Outer.k.offset
        assert [each[0] for each in layout.fields] == [
            0, Outer.n.offset, begin + Inner.a.offset, begin + Inner.b.offset, k, k + 2, k + 4,
        ]  # fmt: skip
        data = ctypes.create_string_buffer(b"\xff" * layout.size_bytes, layout.size_bytes)
        assert layout.read(ctypes.addressof(data)) == b"".join(
            (b"\xff" * 12, bytes(4), b"\xff" * 4, bytes(4), b"\xff" * 14, bytes(2))
        )

    @pytest.mark.parametrize("kind", ["vector<4xf32>", "!llvm.struct<(i24)>", "!llvm.struct<(ptr", "", "i32 i32"])
    def test_what_is_not_known_is_refused(self, kind: str) -> None:
        with pytest.raises(LayoutError, match="is not known"):
            list(struct_leaves(kind))

    def test_modules_of_another_release(self) -> None:
        with pytest.raises(LayoutError, match="there is no host function f"):
            host_types("module {}", "f")
        with pytest.raises(LayoutError, match="what the host function passes to its kernel is not known"):
            launched_types("llvm.func @f(%arg0: i32) -> i32 {\n  }", "f")

    def test_dtypes(self) -> None:
        names = {
            "Boolean": "bool",
            "BFloat16": "bfloat16",
            "Float8E4M3FN": "float8_e4m3fn",
            "Uint8": "uint8",
            "Float16": "float16",
        }
        assert {name: dtype_of(getattr(cutlass, name)).name for name in names} == names


@pytest.fixture(scope="module")
def kaas() -> Iterator[Client]:
    with local_daemon("--device", "emulator", "--log-level", "WARNING") as address, Client(address, timeout=100) as client:
        yield client


def test_it_runs_with_arrays_of_any_length(kaas: Client) -> None:
    f = kaas.bind(saxpy()(2.0, inp("x"), inout("y")))
    for n in (10, 1000):
        x, y = np.arange(n, dtype=np.float32), np.full(n, 3, np.float32)
        assert np.array_equal(f(x=x, y=y)["y"], 2 * x + y)


@pytest.mark.filterwarnings("ignore:Dynamic variable in block size")
def test_layouts_of_the_host_function_run(kaas: Client) -> None:
    f = kaas.bind(transpose()(inp("x"), out("y", dtype="f4", shape=(7, 5))))
    x = np.arange(35, dtype=np.float32).reshape(5, 7)
    assert np.array_equal(f(x=x)["y"], x.T)


def test_shared_memory_runs(kaas: Client) -> None:
    fixed = runtime.make_fake_compact_tensor(cutlass.Int32, (64,), assumed_align=16)
    reverse = cute(cute_kernels.reverse, fixed, fixed, 64, runtime.make_fake_stream())
    x = np.arange(64, dtype=np.int32)
    assert np.array_equal(kaas.bind(reverse(inp("x"), out("y", dtype="i4", shape=64)))(x=x)["y"], x[::-1])
