"""Arrays in the store of a real daemon: from Python, from the shell, and as what requests write."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from examples.local_daemon import local_daemon
from kaas_client import Client, Kernel, Key, Request, inout, inp, out, u64
from kaas_client.errors import InvalidRequestError, KeyNotFoundError
from tests.cli.conftest import run_kaasctl

KERNELS = Path(__file__).parent.parent.parent / "examples/kernels"
MATRIX = np.arange(12, dtype="u4").reshape(3, 4)
LARGE = np.arange(5 << 20, dtype="u1").reshape(5, 1 << 20)

Kaasctl = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def daemon() -> Iterator[str]:
    with local_daemon("--device", "emulator", "--log-level", "WARNING") as address:
        yield address


@pytest.fixture
def kaas(daemon: str) -> Iterator[Client]:
    with Client(daemon, timeout=100) as client:
        yield client


@pytest.fixture
def kaasctl(daemon: str, tmp_path: Path) -> Kaasctl:
    return partial(run_kaasctl, daemon, tmp_path)


ARRAYS: list[Any] = [
    MATRIX,
    LARGE,
    MATRIX.astype(">i2"),
    MATRIX.astype(ml_dtypes.bfloat16),
    MATRIX.astype(ml_dtypes.float8_e4m3fn),
    MATRIX.astype("c8"),
    np.array([(1, [2, 3]), (4, [5, 6])], [("x", "<f4"), ("y", "<i2", (2,))]),
    np.array(2.5),
    np.zeros((0, 4), "f4"),
    np.arange("2020", "2030", dtype="M8[Y]"),
]
IDS = [f"{array.dtype}{array.shape}"[:30] for array in ARRAYS]


@pytest.mark.parametrize("array", ARRAYS, ids=IDS)
def test_what_is_put_is_got(kaas: Client, array: np.ndarray) -> None:
    entry = kaas.put("array", array)
    back = kaas.get("array")
    assert back == array.tobytes()
    assert (back.array().dtype, back.array().shape) == (array.dtype, array.shape)
    assert back.array().tobytes() == array.tobytes()
    assert entry == kaas.stat("array") == back.entry
    assert entry in list(kaas.list("array"))
    kaas.put("array", array.tobytes())
    assert (kaas.stat("array").dtype, kaas.stat("array").shape) == ("", ())


def test_the_order_of_fortran(kaas: Client) -> None:
    kaas.put("f", np.asfortranarray(MATRIX), order="F")
    back = kaas.get("f")
    assert (back.entry.fortran_order, back) == (True, MATRIX.T.tobytes())
    assert back.array().flags.f_contiguous
    assert np.array_equal(back.array(), MATRIX)


def request_of(library: str, *buffers: Any) -> Request:
    return Request([Kernel(library, "prodKern", 1, 12, [u64(12), *buffers])])


def test_what_a_request_writes_is_an_array_where_it_says_so(kaas: Client) -> None:
    library = kaas.upload(KERNELS / "dot.ptx")
    a, b = inp("a", 48, ephemeral=True), inp("b", 48, ephemeral=True)
    inputs = {"a": MATRIX, "b": MATRIX}
    kaas.submit(request_of(library, a, b, out("c", dtype="u4", shape=(4, 3), fortran_order=True)), inputs=inputs)
    assert np.array_equal(kaas.get("c").array(), (MATRIX * MATRIX).ravel().reshape(4, 3, order="F"))
    assert kaas.stat("c").fortran_order

    # A range keeps it: what is written with an offset, and what is read and written.
    part = request_of(library, a, b, out("part", 48, key="large", offset=48, dtype="i8", shape=6))
    kaas.put("large", np.zeros((3, 12), "u4"))
    kaas.submit(part, inputs=inputs)
    assert np.array_equal(kaas.get("large").array(), np.array([np.zeros(12), (MATRIX * MATRIX).ravel(), np.zeros(12)], "u4"))
    kaas.submit(request_of(library, a, b, inout("c", 48)), inputs=inputs)
    assert (kaas.stat("c").shape, kaas.stat("c").fortran_order) == ((4, 3), True)

    # A whole one that says nothing clears it.
    kaas.submit(request_of(library, a, b, out("c", 48)), inputs=inputs)
    assert kaas.stat("c").dtype == ""
    with pytest.raises(TypeError, match="it was stored without a dtype"):
        kaas.get("c").array()


def test_a_range_that_makes_a_key_gives_it_what_the_request_says(kaas: Client) -> None:
    library = kaas.upload(KERNELS / "dot.ptx")
    request = request_of(library, inp("a", 48), inp("b", 48), inout("made", dtype="u4", shape=(3, 4)))
    with pytest.raises(KeyNotFoundError):
        kaas.stat("made")
    kaas.submit(request, inputs={"a": MATRIX, "b": MATRIX, "made": MATRIX})
    assert np.array_equal(kaas.get("made").array(), MATRIX * MATRIX)


LAYOUTS = [MATRIX, np.asfortranarray(MATRIX), np.repeat(MATRIX, 2, axis=1)[:, ::2]]


@pytest.mark.filterwarnings("ignore:the array for buffer 'a' is not contiguous")
@pytest.mark.parametrize("is_fortran", [False, True], ids=["C", "Fortran"])
def test_an_array_is_sent_in_the_order_of_its_buffer(kaas: Client, is_fortran: bool) -> None:
    what: dict[str, Any] = {"dtype": "u4", "shape": (3, 4), "fortran_order": is_fortran}
    library = kaas.upload(KERNELS / "dot.ptx")
    request = request_of(library, inp("a", **what), inp("b", **what), out("c", **what))
    function = kaas.register("ordered", request)
    factor = np.arange(12, 0, -1, dtype="u4").reshape(3, 4)
    for array in LAYOUTS:
        inputs = {"a": array, "b": factor}
        for result in (
            function(**inputs),
            function.options(trace=True)(**inputs),
            kaas.submit(request, inputs=inputs, returns=["c"]),
        ):
            assert np.array_equal(result.array("c"), MATRIX * factor)
            assert result["c"] == (MATRIX * factor).tobytes("F" if is_fortran else "C")
        assert np.array_equal(kaas.get("c").array(), MATRIX * factor)

    # What is no array lies as it does: the bytes, also of a key.
    lying = (MATRIX * factor).tobytes()
    ones = np.ones((3, 4), "u4")
    kaas.put("lying", lying)
    assert function(a=lying, b=ones)["c"] == function(a=memoryview(lying), b=ones)["c"] == lying
    assert function(a=Key("lying"), b=ones)["c"] == lying


def test_a_function_writes_another_key(kaas: Client) -> None:
    library = kaas.upload(KERNELS / "dot.ptx")
    product = kaas.register("product", request_of(library, inp("a", 48), inp("b", 48), out("c", dtype="u4", shape=(3, 4))))
    inputs = {"a": MATRIX, "b": MATRIX}
    product(**inputs, c=Key("elsewhere"))
    assert np.array_equal(kaas.get("elsewhere").array(), MATRIX * MATRIX)


def test_a_request_whose_dtype_does_not_fit_is_refused(kaas: Client) -> None:
    spec = json.loads(request_of("sha256:" + "0" * 64, inp("a", 48), inp("b", 48), out("c", 48)).to_json())
    for fields, words in (
        ({"dtype": "u4", "shape": [5]}, r"shape: buffer 'c': 'u4' of shape \[5\] has 20 bytes, and here are 48"),
        ({"dtype": "nonsense", "shape": [12]}, "dtype: buffer 'c': 'nonsense' is no dtype that is known here"),
        ({"dtype": "u4", "shape": [2**63, 2**63]}, "shape: buffer 'c': .* has at most 9223372036854775807 bytes"),
    ):
        spec["buffers"] = [buffer | (fields if buffer["name"] == "c" else {}) for buffer in spec["buffers"]]
        with pytest.raises(InvalidRequestError, match=words):
            kaas.submit(Request.from_json(json.dumps(spec)))


# From the shell.


@pytest.mark.parametrize("array", ARRAYS[:3] + ARRAYS[5:], ids=IDS[:3] + IDS[5:])
def test_files_of_npy(kaas: Client, kaasctl: Kaasctl, tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "in.npy", array)
    done = kaasctl("-o", "json", "kv", "put", "npy", "in.npy", "--npy")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["shape"] == [*array.shape]
    assert np.array_equal(kaas.get("npy").array(), array)
    done = kaasctl("kv", "get", "npy", "--npy", "out.npy")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    back = np.load(tmp_path / "out.npy")
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_npy_over_pipes_and_in_the_order_of_fortran(kaas: Client, kaasctl: Kaasctl, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.asfortranarray(MATRIX))
    content = (tmp_path / "f.npy").read_bytes()
    assert kaasctl("kv", "put", "npy", "-", "--npy", stdin=content).returncode == 0
    assert kaas.stat("npy").fortran_order
    assert kaasctl("kv", "get", "npy", "--npy").stdout == content
    assert kaasctl("kv", "get", "npy").stdout == MATRIX.T.tobytes()


def test_a_type_that_npy_does_not_have(kaas: Client, kaasctl: Kaasctl, tmp_path: Path) -> None:
    array = MATRIX.astype(ml_dtypes.bfloat16)
    kaas.put("bf16", array)
    done = kaasctl("kv", "get", "bf16", "--npy", "out.npy")
    assert done.returncode == 0
    assert b".npy files have no bfloat16: this one has its items as V2; numpy.load(...)" in done.stderr.replace(
        "…".encode(), b"..."
    )
    assert np.array_equal(np.load(tmp_path / "out.npy").view(ml_dtypes.bfloat16), array)


def test_what_the_shell_shows(kaas: Client, kaasctl: Kaasctl) -> None:
    kaas.put("shown/array", MATRIX)
    kaas.put("shown/bytes", b"1")
    array, content = json.loads(kaasctl("-o", "json", "kv", "ls", "shown/").stdout)
    assert (array["dtype"], array["shape"], array["fortran_order"]) == ("uint32", [3, 4], False)
    assert "dtype" not in content
    lines = kaasctl("kv", "stat", "shown/array").stdout.decode().splitlines()
    assert [line.split(maxsplit=1) for line in lines if line.startswith(("dtype", "shape"))] == [
        ["dtype", "uint32"],
        ["shape", "3, 4"],
    ]
    assert b"dtype" not in kaasctl("kv", "stat", "shown/bytes").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["kv", "put", "x", "bad.npy", "--npy"], 2, "bad.npy is no .npy file that can be read"),
        (["kv", "put", "x", "objects.npy", "--npy"], 2, "objects.npy is no .npy file that can be read: Object arrays cannot"),
        (["kv", "put", "x", "short.npy", "--npy"], 2, "short.npy is no .npy file that can be read"),
        (["kv", "get", "bytes", "--npy", "out.npy"], 1, "the value of 'bytes' was not stored as an array: it has no dtype"),
        (["kv", "get", "array", "--npy", "--offset", "4"], 2, "go without --npy"),
        (["kv", "get", "missing", "--npy", "out.npy"], 4, "missing"),
    ],
)
def test_what_is_no_array_is_refused(
    kaas: Client, kaasctl: Kaasctl, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    kaas.put("bytes", b"1")
    kaas.put("array", MATRIX)
    (tmp_path / "bad.npy").write_bytes(b"no array")
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    np.save(tmp_path / "short.npy", MATRIX)
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-4])
    done = kaasctl(*arguments)
    assert done.returncode == code
    assert words in " ".join(done.stderr.decode().replace("│", " ").split())
    assert not (tmp_path / "out.npy").exists()
    with pytest.raises(KeyNotFoundError):
        kaas.stat("x")
