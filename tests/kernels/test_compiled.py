"""What compilers make: names, parameters, versions, and errors that say what is wrong. No daemon and no GPU."""

from __future__ import annotations

import ctypes
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from warp._src import types as warp_types

from kaas_client import f32, f64, inout, inp, u64
from kaas_client.forms import Form
from kaas_client.kernels import Compiled, CompileError, LayoutError, Parameter, cuda, cupy, fatbin, numba, ptx, triton, warp
from kaas_client.kernels import _triton as triton_source
from kaas_client.kernels._warp import ArrayStruct, bounds
from kaas_core.errors import InvalidRequestError
from tests.kernels import sources

EXAMPLES = Path(__file__).parents[2] / "examples/kernels"
X = {name: Form(np.dtype(np.float32), (6,)) for name in "xy"}


class TestCuda:
    def test_a_kernel_by_its_own_name(self) -> None:
        plain = cuda(source=sources.CUDA)["plain"].compile(target="sm_90")
        assert (plain.entry, plain.target, plain.block) == ("plain", "sm_90", None)
        assert [each.size_bytes for each in plain.parameters] == [4, 8, 8, 8]
        assert plain.compiler.startswith("NVRTC 13.")
        assert plain.image.startswith(b"//") and b".target sm_90" in plain.image

    def test_a_template_by_its_arguments(self) -> None:
        saxpy = cuda(source=sources.CUDA)["saxpy<double>"]
        assert saxpy.entry.startswith("_Z5saxpyIdE")
        assert saxpy.parameters[0] == Parameter(f"{saxpy.entry}_param_0", 8, 8, "value")

    def test_templates_are_compiled_together(self) -> None:
        both = cuda(source=sources.CUDA, name_expressions=("saxpy<float>", "saxpy<int>")).compile()
        assert both["saxpy<float>"].image is both["saxpy<int>"].image
        assert sorted(both.made.entries) == ["plain", "saxpy<float>", "saxpy<int>"]

    def test_one_of_several_is_to_be_named(self) -> None:
        source = cuda(source=sources.CUDA, name_expressions=("saxpy<float>",))
        with pytest.raises(CompileError, match=r'say which kernel, as in compiled\["name"\]; it has plain, saxpy<float>'):
            _ = source.entry

    def test_what_there_is_not_is_named(self) -> None:
        with pytest.raises(CompileError, match='identifier "nothing" is undefined'):
            _ = cuda(source=sources.CUDA)["nothing"].entry

    def test_an_error_in_the_source_has_its_line(self, tmp_path: Path) -> None:
        file = tmp_path / "wrong.cu"
        file.write_text("__global__ void k()\n{ nothing(); }\n")
        with pytest.raises(CompileError, match=r'wrong\.cu\(2\): error: identifier "nothing"'):
            cuda(file).compile()

    def test_a_file_includes_what_lies_beside_it(self, tmp_path: Path) -> None:
        (tmp_path / "number.h").write_text("#define NUMBER 3\n")
        file = tmp_path / "k.cu"
        file.write_text('#include "number.h"\nextern "C" __global__ void k(int* x) { *x = NUMBER * FACTOR; }\n')
        assert cuda(file, options=["-DFACTOR=2"]).entry == "k"

    def test_where_its_ptx_is_too_new_it_is_machine_code(self) -> None:
        made = cuda(source=sources.CUDA)["saxpy<float>"].compile(target="sm_90", ptx_version=80)
        assert made.image.startswith(b"\x7fELF") and made.ptx_version == 0
        assert len(made.parameters) == 4

    def test_one_of_path_and_source(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="takes a path or source"):
            cuda()
        with pytest.raises(FileNotFoundError):
            cuda(tmp_path / "none.cu")

    def test_a_raw_kernel_of_cupy(self) -> None:
        raw = SimpleNamespace(code=sources.CUDA, name="saxpy<float>", options=("-DX",))
        assert cupy(raw).entry.startswith("_Z5saxpyIfE")

    def test_what_was_compiled_is_kept_by_content(self) -> None:
        first, second = (cuda(source=sources.CUDA)["plain"].compile(target="sm_75") for _ in range(2))
        assert first.image is second.image
        other = cuda(source=sources.CUDA, options=["-DX"])["plain"].compile(target="sm_75")
        assert other.image is not first.image


class TestFiles:
    def test_ptx(self) -> None:
        kernels = ptx(EXAMPLES / "dot.ptx")
        assert sorted(kernels.made.entries) == ["prodKern", "sumKern"]
        assert [each.size_bytes for each in kernels["prodKern"].parameters] == [8, 8, 8, 8]
        with pytest.raises(CompileError, match=r"dot\.ptx: its PTX has version \d\.\d, and the device takes at most 3\.2"):
            kernels.compile(ptx_version=32)

    def test_what_is_no_ptx(self) -> None:
        with pytest.raises(CompileError, match=r"heap\.fatbin: it has no \.version"):
            ptx(Path(__file__).parents[1] / "conformance/data/heap.fatbin")

    def test_a_fatbin_has_what_the_server_finds_in_it(self) -> None:
        kernels = fatbin(Path(__file__).parents[1] / "conformance/data/heap.fatbin")
        assert (kernels["any"].entry, kernels["any"].parameters) == ("any", ())


class TestTriton:
    def compiled(self, **options: int) -> Compiled:
        return triton(sources.triton_saxpy, sources.TRITON_TYPES, {"BLOCK": 64}, **options)

    def test_its_block_and_parameters(self) -> None:
        made = self.compiled(num_warps=2).compile(target="sm_80")
        assert (made.block, made.target, made.entry) == ((64, 1, 1), "sm_80", "triton_saxpy")
        assert [(each.name, each.role) for each in made.parameters[:4]] == [
            ("a", "value"), ("x", "address"), ("y", "address"), ("n", "value"),
        ]  # fmt: skip
        assert [each.role for each in made.parameters[4:]] == ["scratch"] * 2

    def test_it_is_asked_for_ptx_that_the_device_takes(self) -> None:
        made = self.compiled().compile(target="sm_90", ptx_version=80)
        assert made.ptx_version <= 80 < self.compiled().compile(target="sm_90").ptx_version

    def test_a_launch(self) -> None:
        launch = self.compiled()[4](2.0, inp("x"), inout("y"), 200)
        kernel = launch.kernel("library", X)
        assert (kernel.grid, kernel.block, kernel.name) == ((4, 1, 1), (128, 1, 1), "triton_saxpy")
        assert kernel.args[0] == f32(2.0) and kernel.args[4:] == [u64(0), u64(0)]

    def test_its_launch_has_the_attributes_that_triton_says(self) -> None:
        kernel = self.compiled(launch_pdl=True, launch_cooperative_grid=True)[4](2.0, inp("x"), inout("y"), 200).kernel("l", X)
        assert (kernel.cooperative, kernel.programmatic_dependent_launch, kernel.cluster) == (True, True, None)
        made = self.compiled(num_ctas=2).compile(target="sm_90")
        kernel = made[4](2.0, inp("x"), inout("y"), 200).kernel("l", X)
        assert (kernel.cluster, kernel.grid, kernel.cooperative) == ((2, 1, 1), (8, 1, 1), False)

    def test_what_is_promised_is_checked(self) -> None:
        promised = triton(sources.triton_saxpy, sources.TRITON_TYPES | {"n": "i32:16"}, {"BLOCK": 64})
        assert promised[4](2.0, inp("x"), inout("y"), 160).kernel("library", X)
        with pytest.raises(InvalidRequestError, match=r"arguments\[3\]: 'n' was promised to be divisible by 16, and is 200"):
            promised[4](2.0, inp("x"), inout("y"), 200).kernel("library", X)

    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            ((2.0, inp("x"), inout("y")), InvalidRequestError, "it takes a, x, y, n: 4, not 3"),
            ((2.0, 5, inout("y"), 3), TypeError, r"arguments\[1\]: parameter 'x' is an address"),
            ((inp("x"), inp("x"), inout("y"), 3), TypeError, r"arguments\[0\]: parameter 'a' is a number of type fp32"),
            ((2.0, inp("x"), inout("y"), 2**31), InvalidRequestError, r"arguments\[3\]: 2147483648 does not fit"),
            ((f64(2.0), inp("x"), inout("y"), 1), InvalidRequestError, r"arguments\[0\]: a number of 8 bytes was given"),
        ],
    )
    def test_wrong_arguments(self, arguments: tuple[object, ...], error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            self.compiled()[4](*arguments).kernel("library", X)

    def test_its_block_is_its_own(self) -> None:
        with pytest.raises(InvalidRequestError, match=r"block: Triton gives its blocks 128 threads"):
            self.compiled()[(4,), 32](2.0, inp("x"), inout("y"), 3).kernel("library", X)

    def test_names_that_there_are_not(self) -> None:
        with pytest.raises(TypeError, match="no parameter 'z'; it has a, x, y, n, BLOCK"):
            triton(sources.triton_saxpy, {"z": "i32"}, {})
        with pytest.raises(TypeError, match="'BLOCK' has no type in the signature, and no value in constants"):
            triton(sources.triton_saxpy, sources.TRITON_TYPES)
        with pytest.raises(TypeError, match="Triton has no option 'num_warp'"):
            self.compiled(num_warp=4)

    def test_another_layout_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(triton_source, "SCRATCH", 3)
        with pytest.raises(LayoutError, match="an entry of 7 parameters"):
            self.compiled().compile(target="sm_75")


class TestNumba:
    def test_an_array_is_its_sizes_and_strides(self) -> None:
        made = numba(sources.numba_saxpy, sources.NUMBA_TYPES).compile(target="sm_80")
        assert [each.name for each in made.parameters][:8] == [
            "a", "x.meminfo", "x.parent", "x.nitems", "x.itemsize", "x.data", "x.shape[0]", "x.strides[0]",
        ]  # fmt: skip
        kernel = made[2, 64](2, inp("x"), inout("y")).kernel("library", X)
        assert [getattr(each, "value", "address") for each in kernel.args[1:8]] == [0, 0, 6, 4, "address", 6, 4]

    def test_arrays_of_two_dimensions_in_both_orders(self) -> None:
        types = "void(float32[:,::1], float32[:,:])"
        forms = {"x": Form(np.dtype("f4"), (2, 3)), "y": Form(np.dtype("f4"), (3, 2), fortran_order=True)}
        kernel = numba(sources.numba_transpose, types)[1, (2, 3)](inp("x"), inout("y")).kernel("library", forms)
        values = [getattr(each, "value", "address") for each in kernel.args]
        assert values == [0, 0, 6, 4, "address", 2, 3, 12, 4, 0, 0, 6, 4, "address", 3, 2, 4, 12]

    def test_wrong_arrays(self) -> None:
        saxpy = numba(sources.numba_saxpy, sources.NUMBA_TYPES)
        for form in (Form(np.dtype("f8"), (6,)), Form(np.dtype("f4"), (2, 3))):
            with pytest.raises(InvalidRequestError, match=r"arguments\[1\]: it takes array\(float32, 1d, C\), and buffer 'x' is"):
                saxpy[1, 32](2.0, inp("x"), inout("y")).kernel("library", X | {"x": form})
        with pytest.raises(InvalidRequestError, match=r"arguments\[1\]: buffer 'x' needs a dtype and a shape"):
            saxpy[1, 32](2.0, inp("x"), inout("y")).kernel("library", {})

    def test_types_that_cannot_be_passed(self) -> None:
        with pytest.raises(TypeError, match=r"takes a, x, y: the signature has 1 types"):
            numba(sources.numba_saxpy, "void(float32)")
        with pytest.raises(TypeError, match=r"parameter 'a' has Numba's type unicode_type"):
            from numba import types

            numba(sources.numba_saxpy, (types.unicode_type, *sources.NUMBA_TYPES[1:]))

    def test_its_own_errors(self) -> None:
        def wrong(x):  # type: ignore[no-untyped-def]
            x[0] = nothing  # type: ignore[name-defined]  # noqa: F821

        with pytest.raises(CompileError, match="wrong: Numba: TypingError"):
            numba(wrong, "void(float32[::1])").compile()


class TestWarp:
    def test_structs_are_those_of_warp(self) -> None:
        theirs = warp_types.array_t
        assert [(field[0], ctypes.sizeof(field[1])) for field in theirs._fields_] == [
            (field[0], ctypes.sizeof(field[1])) for field in ArrayStruct._fields_
        ]
        for rank, dim in enumerate(([5], [5, 6], [5, 6, 7], [5, 6, 7, 8]), 1):
            assert ctypes.sizeof(bounds(rank, dim)) == (24, 24, 32, 32)[rank - 1]

    def test_a_launch(self) -> None:
        kernel = warp(sources.warp_saxpy)[600](2.0, inp("x"), inout("y")).kernel("library", X)
        assert (kernel.name, kernel.grid, kernel.block) == ("warp_saxpy_cuda_kernel_forward", (3, 1, 1), (256, 1, 1))
        kernel = warp(sources.warp_fill)[(6, 4), 32](inout("m"), (1, 2, 3), 5).kernel("l", {"m": Form(np.dtype("f4"), (6, 4))})
        assert (kernel.grid, kernel.block) == ((1, 1, 1), (32, 1, 1))

    def test_tiles_are_for_one_block(self) -> None:
        """With another, their results would be wrong, and nothing would say so."""
        forms = {"m": Form(np.dtype("f4"), (4, 64)), "sums": Form(np.dtype("f4"), (4,))}
        tiles = warp(sources.warp_tiles)
        for launcher in (tiles[4, 256], tiles[(4, 256), 256]):
            kernel = launcher(inp("m"), inout("sums")).kernel("library", forms)
            assert (kernel.grid, kernel.block) == ((4, 1, 1), (256, 1, 1))
        for block in (64, (128, 2)):
            with pytest.raises(InvalidRequestError, match=r"block: Warp compiles tiles for one size of block, here 256"):
                tiles[(4, 256), block](inp("m"), inout("sums")).kernel("library", forms)

    def test_wrong_arguments(self) -> None:
        with pytest.raises(InvalidRequestError, match=r"grid: Warp's dim of this kernel has at most 1 numbers, not 2"):
            warp(sources.warp_saxpy)[6, 4](2.0, inp("x"), inout("y")).kernel("library", X)
        with pytest.raises(InvalidRequestError, match=r"arguments\[1\]: it takes an array of 1 dimensions of float32, and"):
            warp(sources.warp_saxpy)[6](2.0, inp("x"), inout("y")).kernel("library", X | {"x": Form(np.dtype("i4"), (6,))})
        with pytest.raises(TypeError, match=r"takes a function with @wp\.kernel"):
            warp(inspect)


def test_a_launch_says_which_argument_is_none() -> None:
    with pytest.raises(TypeError, match=r"argument 1 of kernel 'plain' is 5: expected inp"):
        cuda(source=sources.CUDA)["plain"][1, 32](f32(1), 5, inout("y"), u64(1)).kernel("library", {})


def test_parameters_and_arguments_are_as_many() -> None:
    with pytest.raises(InvalidRequestError, match=r"arguments: it has 4 parameters, and gets 1"):
        cuda(source=sources.CUDA)["plain"][1, 32](f32(1)).kernel("library", {})


def test_a_block_is_needed_where_the_kernel_has_none() -> None:
    with pytest.raises(InvalidRequestError, match=r"block: say how many threads a block has"):
        cuda(source=sources.CUDA)["plain"][1](f32(1), inp("x"), inout("y"), u64(1)).kernel("library", {})


def test_launch_attributes_are_keywords() -> None:
    data = Path(__file__).parents[1] / "conformance/data/launches.ptx"
    exchange, place = (ptx(data)[name] for name in ("exchangeKern", "placeKern"))
    plain = exchange[16, 64](inp("x", 4096), inout("y", 4096)).kernel("library", {})
    assert (plain.cluster, plain.cooperative, plain.programmatic_dependent_launch) == (None, False, False)
    launch = exchange[16, 64](
        inp("x", 4096), inout("y", 4096), cluster=(2, 1), cooperative=True, programmatic_dependent_launch=True
    )
    kernel = launch.kernel("library", {})
    assert (kernel.cluster, kernel.cooperative, kernel.programmatic_dependent_launch) == ((2, 1), True, True)
    # What a kernel is compiled for is what a launch has by itself.
    assert place[(4, 4), 32](inout("p", 4096)).kernel("library", {}).cluster == (2, 2, 1)
