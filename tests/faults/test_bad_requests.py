"""Every bad request gets its clear error through the real socket, and leaves the store as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kaas.v1 import executor_pb2, types_pb2
from kaas_client import Client
from kaas_core.errors import (
    InvalidLibraryError,
    InvalidRequestError,
    KaasError,
    KernelFaultError,
    KernelNotFoundError,
    KeyNotFoundError,
    LibraryNotFoundError,
    MessageTooLargeError,
    ValueTooShortError,
)
from tests.faults.support import contents, dot_request, literal, put_dot_inputs, use

Submit = Callable[[executor_pb2.SubmitRequest], executor_pb2.SubmitResponse]
Change = Callable[[types_pb2.Request], object]


def test_the_good_request_from_which_the_bad_ones_are_made(kaas: Client, submit: Submit, library_root: Path) -> None:
    expected = put_dot_inputs(kaas)
    response = submit(dot_request(str(library_root / "dot.ptx")))
    assert response.versions.keys() == {"c"}
    assert kaas.get("c", dtype="u4")[0] == expected


BAD: dict[str, tuple[Change, type[KaasError], str]] = {
    "no kernels": (lambda r: r.ClearField("kernels"), InvalidRequestError, "kernels"),
    "unknown kernel": (lambda r: setattr(r.kernels[1], "name", "sumKernel"), KernelNotFoundError, "kernels[1].name"),
    "empty kernel name": (lambda r: setattr(r.kernels[1], "name", ""), InvalidRequestError, "kernels[1].name"),
    "too few arguments": (lambda r: r.kernels[0].arguments.pop(), InvalidRequestError, "kernels[0].arguments"),
    "too many arguments": (
        lambda r: r.kernels[1].arguments.append(literal("I", uint_value=1)),
        InvalidRequestError,
        "kernels[1].arguments",
    ),
    "literal too small for its parameter": (
        lambda r: r.kernels[0].arguments[0].CopyFrom(literal("I", uint_value=1024)),
        InvalidRequestError,
        "kernels[0].arguments[0]",
    ),
    "literal out of range": (
        lambda r: r.kernels[0].arguments[0].CopyFrom(literal("b", int_value=128)),
        InvalidRequestError,
        "kernels[0].arguments[0]",
    ),
    "unknown literal type": (
        lambda r: r.kernels[0].arguments[0].CopyFrom(literal("x", int_value=1)),
        InvalidRequestError,
        "kernels[0].arguments[0]",
    ),
    "argument of no kind": (
        lambda r: r.kernels[0].arguments[0].CopyFrom(types_pb2.Argument()),
        InvalidRequestError,
        "kernels[0].arguments[0]",
    ),
    "unknown access": (
        lambda r: r.kernels[0].arguments[1].CopyFrom(use("a", types_pb2.Access.ACCESS_UNSPECIFIED)),
        InvalidRequestError,
        "kernels[0].arguments[1]",
    ),
    "unknown buffer": (
        lambda r: r.kernels[0].arguments[1].CopyFrom(use("z", types_pb2.Access.ACCESS_INPUT)),
        InvalidRequestError,
        "kernels[0].arguments[1]",
    ),
    "zero grid": (lambda r: r.kernels[0].ClearField("grid"), InvalidRequestError, "kernels[0].grid"),
    "zero block": (lambda r: r.kernels[1].ClearField("block"), InvalidRequestError, "kernels[1].block"),
    "too large grid": (lambda r: setattr(r.kernels[0].grid, "y", 65536), InvalidRequestError, "kernels[0].grid[1]"),
    "negative grid": (lambda r: setattr(r.kernels[0].grid, "x", 2**32 - 1), InvalidRequestError, "kernels[0].grid[0]"),
    "too large block": (lambda r: setattr(r.kernels[0].block, "x", 1025), InvalidRequestError, "kernels[0].block"),
    "too many threads": (lambda r: setattr(r.kernels[0].block, "y", 2), InvalidRequestError, "kernels[0].block"),
    "too much shared memory": (
        lambda r: setattr(r.kernels[1], "shared_memory_bytes", 10**6),
        InvalidRequestError,
        "kernels[1].shared_memory_bytes",
    ),
    "buffer of size 0": (lambda r: r.buffers[1].ClearField("size_bytes"), InvalidRequestError, "buffers[1].size"),
    "size beyond the value": (lambda r: setattr(r.buffers[1], "size_bytes", 4097), ValueTooShortError, "'b'"),
    "offset beyond the end": (lambda r: setattr(r.buffers[1], "offset_bytes", 4096), ValueTooShortError, "'b'"),
    "offset that overflows": (
        lambda r: setattr(r.buffers[1], "offset_bytes", 2**64 - 1),
        InvalidRequestError,
        "buffers[1].offset",
    ),
    "two buffers of one name": (lambda r: setattr(r.buffers[1], "name", "a"), InvalidRequestError, "buffers[1]"),
    "missing key": (lambda r: setattr(r.buffers[0], "key", "nothing here"), KeyNotFoundError, "nothing here"),
    "too long key": (lambda r: setattr(r.buffers[0], "key", "k" * 401), InvalidRequestError, "buffers[0].key"),
    "empty buffer name": (lambda r: setattr(r.buffers[3], "name", ""), InvalidRequestError, "buffers[3].name"),
    "key on an ephemeral buffer": (lambda r: setattr(r.buffers[2], "key", "p"), InvalidRequestError, "buffers[2].key"),
    "constant buffer that is written": (
        lambda r: setattr(r.buffers[3], "constant", True),
        InvalidRequestError,
        "kernels[1].arguments[1]",
    ),
    "more memory than the device has": (
        lambda r: setattr(r.buffers[2], "size_bytes", 1 << 30),
        KaasError,
        "1073750020",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_request(name: str, kaas: Client, submit: Submit, library_root: Path) -> None:
    change, kind, where = BAD[name]
    put_dot_inputs(kaas)
    before = contents(kaas)
    message = dot_request(str(library_root / "dot.ptx"))
    change(message.request)
    with pytest.raises(kind) as caught:
        submit(message)
    assert where in caught.value.message
    if isinstance(caught.value, InvalidRequestError):
        assert any(violation.field.startswith(where) for violation in caught.value.violations)
    assert contents(kaas) == before


LIBRARIES: dict[str, tuple[str, type[KaasError]]] = {
    "a missing file": ("missing.ptx", LibraryNotFoundError),
    "a file outside, by its path": ("../outside.ptx", LibraryNotFoundError),
    "a file outside, by a symbolic link": ("link.ptx", LibraryNotFoundError),
    "a file of the system": ("/etc/passwd", LibraryNotFoundError),
    "the root itself": ("", LibraryNotFoundError),
    "a text file": ("text.ptx", InvalidLibraryError),
    "a truncated PTX": ("truncated.ptx", InvalidLibraryError),
    "a truncated ELF": ("truncated.so", InvalidLibraryError),
    "an empty file": ("empty.ptx", InvalidLibraryError),
    "a content id of nothing": ("sha256:" + "0" * 64, LibraryNotFoundError),
    "a malformed content id": ("sha256:xyz", InvalidRequestError),
    "a relative path": ("./dot.ptx", InvalidRequestError),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_bad_library(name: str, kaas: Client, submit: Submit, library_root: Path) -> None:
    path, kind = LIBRARIES[name]
    library = path if path.startswith(("sha256:", "./", "/")) else str(library_root / path)
    put_dot_inputs(kaas)
    before = contents(kaas)
    with pytest.raises(kind, match=r"kernels\[0\]\.library") as caught:
        submit(dot_request(library))
    if kind is LibraryNotFoundError and not library.startswith("sha256:"):  # The same words whether it exists elsewhere or not.
        assert caught.value.message.endswith("there is no such file below a library root")
    assert contents(kaas) == before


def test_a_read_past_the_end_of_a_buffer_names_the_buffer(kaas: Client, submit: Submit, library_root: Path) -> None:
    put_dot_inputs(kaas)
    before = contents(kaas)
    message = dot_request(str(library_root / "dot.ptx"))
    message.request.buffers[1].size_bytes = 4092
    with pytest.raises(KernelFaultError) as caught:
        submit(message)
    assert caught.value.metadata["fault"] == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert (caught.value.metadata["kernel_index"], caught.value.metadata["kernel"]) == ("0", "prodKern")
    assert "'b'" in caught.value.metadata["report"]
    assert "4092" in caught.value.metadata["report"]
    assert contents(kaas) == before


@pytest.mark.parametrize(
    ("inputs", "field"),
    [({"z": b"1234"}, "z"), ({"a": b"1234"}, "a"), ({"p": bytes(4096)}, "p")],
    ids=["unknown buffer", "wrong length", "buffer that is not loaded"],
)
def test_bad_inline_input(inputs: dict[str, bytes], field: str, kaas: Client, submit: Submit, library_root: Path) -> None:
    put_dot_inputs(kaas)
    before = contents(kaas)
    message = dot_request(str(library_root / "dot.ptx"))
    for name, data in inputs.items():
        message.inputs[name] = data
    with pytest.raises(InvalidRequestError) as caught:
        submit(message)
    assert caught.value.violations[0].field == f'inputs["{field}"]'
    assert contents(kaas) == before


def test_unknown_buffer_to_return(submit: Submit, library_root: Path) -> None:
    message = dot_request(str(library_root / "dot.ptx"))
    message.return_buffers.append("z")
    with pytest.raises(InvalidRequestError) as caught:
        submit(message)
    assert caught.value.violations[0].field == "return_buffers[0]"


def test_unknown_device(submit: Submit, library_root: Path) -> None:
    message = dot_request(str(library_root / "dot.ptx"))
    message.device = "cuda:9"
    with pytest.raises(InvalidRequestError, match="cuda:9"):
        submit(message)


def test_a_message_over_the_limit(kaas: Client, submit: Submit, library_root: Path) -> None:
    before = contents(kaas)
    message = dot_request(str(library_root / "dot.ptx"))
    message.inputs["a"] = bytes(3 << 20)
    with pytest.raises(MessageTooLargeError):
        submit(message)
    assert contents(kaas) == before
