"""What is in a message is counted before it is parsed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from kaas.v1 import executor_pb2, types_pb2
from kaas_core.errors import MessageTooLargeError
from kaasd.api import counting
from kaasd.front.functions import DEFAULT_LIMITS, RequestLimits
from tests.api.support import LIBRARY, Failure, FakeDispatcher, Running, failure, running_server

SUBMIT = executor_pb2.SubmitRequest.DESCRIPTOR
TEXT = st.text(max_size=5)


@st.composite
def submits(draw: st.DrawFn) -> executor_pb2.SubmitRequest:
    """A message, which need not be a valid request."""
    arguments = st.builds(
        types_pb2.Argument,
        buffer=st.none() | st.builds(types_pb2.BufferArgument, buffer=TEXT, access=st.integers(0, 4)),
        packed=st.none()
        | st.builds(
            types_pb2.Packed,
            data=st.binary(max_size=9),
            buffers=st.lists(st.builds(types_pb2.PackedBuffer, offset_bytes=st.integers(0, 2**32 - 1)), max_size=3),
        ),
    )
    dim = st.builds(types_pb2.Dim3, x=st.integers(0, 2**31 - 1), y=st.integers(0, 3))
    kernels = st.builds(types_pb2.KernelSpec, name=TEXT, grid=dim, block=dim, arguments=st.lists(arguments, max_size=3))
    shapes = st.lists(st.integers(0, 127), max_size=5)
    buffers = st.builds(types_pb2.BufferSpec, name=TEXT, size_bytes=st.integers(0, 2**64 - 1), shape=shapes)
    request = types_pb2.Request(kernels=draw(st.lists(kernels, max_size=3)), buffers=draw(st.lists(buffers, max_size=3)))
    inputs = draw(st.dictionaries(TEXT, st.binary(max_size=300), max_size=3))
    return executor_pb2.SubmitRequest(request=request, inputs=inputs, return_buffers=draw(st.lists(TEXT, max_size=3)))


def number_of_fields(data: bytes, message: Descriptor) -> int:
    """Count by protobuf's own reading of a message that it knows no field of."""
    total = 0
    known = {field.number: field for field in message.fields}
    for field in UnknownFieldSet(Empty.FromString(data)):
        total += 1
        inside = known[field.field_number].message_type
        if inside is not None:
            total += number_of_fields(field.data, inside)
        elif known[field.field_number].name == "shape":
            total += len(field.data)
    return total


def count(data: bytes, limits: RequestLimits = DEFAULT_LIMITS) -> None:
    deque(counting.count(data, SUBMIT, counting.field_limits(limits)), 0)


@given(submits())
def test_every_field_is_counted_once(message: executor_pb2.SubmitRequest) -> None:
    data = message.SerializeToString()
    fields = number_of_fields(data, SUBMIT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "MAX_FIELDS", fields)
        count(data)
        patch.setattr(counting, "MAX_FIELDS", fields - 1)
        if fields:
            with pytest.raises(MessageTooLargeError, match=f"more than {fields - 1} fields"):
                count(data)


@given(st.binary(max_size=100) | submits().map(lambda message: message.SerializeToString()[:-1]))
def test_what_is_malformed_is_left_to_who_parses(data: bytes) -> None:
    assert list(counting.count(data, SUBMIT, counting.field_limits(DEFAULT_LIMITS))) == []


@pytest.mark.parametrize(
    "data", [b":\x80\x08", b":\x80\x80.", b"\x0a\x80\x80."], ids=["a number", "more than may be", "a message"]
)
def test_what_says_that_it_is_longer_than_all_ends_the_count(data: bytes) -> None:
    assert list(counting.count(data, SUBMIT, counting.field_limits(DEFAULT_LIMITS))) == []


def test_a_number_without_an_end_ends_the_count() -> None:
    data = b"\x08" + b"\xff" * 100_000
    count(data)
    with pytest.raises(DecodeError):
        executor_pb2.SubmitRequest.FromString(data)


def test_it_pauses_so_that_others_go_on() -> None:
    data = executor_pb2.SubmitRequest(return_buffers=["a"] * (10 * counting.STEP_FIELDS)).SerializeToString()
    assert len(list(counting.count(data, SUBMIT, {}))) == 10


def kernel(arguments: int = 0, packed: int = 0) -> types_pb2.KernelSpec:
    one = types_pb2.Dim3(x=1)
    given = [types_pb2.Argument(literal=types_pb2.Literal(type="i", int_value=1))] * arguments
    if packed:
        buffers = [types_pb2.PackedBuffer(argument=types_pb2.BufferArgument(buffer="b0"))] * packed
        given.append(types_pb2.Argument(packed=types_pb2.Packed(data=bytes(8), buffers=buffers)))
    return types_pb2.KernelSpec(library=LIBRARY, name="k", grid=one, block=one, arguments=given)


def buffers(number: int) -> list[types_pb2.BufferSpec]:
    return [types_pb2.BufferSpec(name=f"b{index}", size_bytes=1) for index in range(number)]


REQUESTS: dict[str, Callable[[RequestLimits], types_pb2.Request]] = {
    "kernels": lambda limits: types_pb2.Request(kernels=[kernel()] * (limits.kernels + 1)),
    "buffers": lambda limits: types_pb2.Request(kernels=[kernel()], buffers=buffers(limits.buffers + 1)),
    "kernels[].arguments": lambda limits: types_pb2.Request(
        kernels=[*[kernel(arguments=1000)] * (limits.arguments // 1000), kernel(arguments=limits.arguments % 1000 + 1)]
    ),
    "kernels[].arguments[].packed.buffers": lambda limits: types_pb2.Request(
        kernels=[*[kernel(packed=1000)] * (limits.arguments // 1000), kernel(packed=limits.arguments % 1000 + 1)]
    ),
}
PATHS = {"kernels[].arguments[].packed.buffers": "kernels[].arguments"}
"""They count as arguments."""
FEW = RequestLimits(kernels=3, buffers=3, arguments=3)


def submitted(server: Running, request: types_pb2.Request) -> Failure:
    return failure(lambda: server.stubs.executor.Submit(executor_pb2.SubmitRequest(request=request)))


def registered(server: Running, request: types_pb2.Request) -> Failure:
    message = executor_pb2.RegisterFunctionRequest(name="f", request=request)
    return failure(lambda: server.stubs.executor.RegisterFunction(message))


@pytest.mark.parametrize("field", REQUESTS)
@pytest.mark.parametrize("send", [submitted, registered])
def test_a_request_has_at_most_so_many(
    server: Running, field: str, send: Callable[[Running, types_pb2.Request], Failure]
) -> None:
    found = send(server, REQUESTS[field](DEFAULT_LIMITS))
    assert (found.code, found.reason, found.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        [PATHS.get(field, field)],
    )


@pytest.mark.parametrize("field", REQUESTS)
@pytest.mark.parametrize("send", [submitted, registered])
def test_the_limits_are_settings(tmp_path: Path, field: str, send: Callable[[Running, types_pb2.Request], Failure]) -> None:
    settings = {f"max_{name}": most for name, most in FEW._asdict().items()}
    with running_server(tmp_path, FakeDispatcher(), **settings) as server:
        found = send(server, REQUESTS[field](FEW))
    assert (found.reason, found.fields) == ("INVALID_REQUEST", [PATHS.get(field, field)])
    assert "at most 3 are allowed" in found.message


def test_fields_that_nobody_knows_are_counted_too(server: Running) -> None:
    unknown = b"\xf8\x07\x01" * (counting.MAX_FIELDS + 1)
    message = executor_pb2.SubmitRequest.FromString(unknown)
    found = failure(lambda: server.stubs.executor.Submit(message))
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


def test_a_message_of_a_stream_is_counted_too(server: Running) -> None:
    unknown = executor_pb2.InvokeStreamRequest.FromString(b"\xf8\x07\x01" * (counting.MAX_FIELDS + 1))
    found = failure(lambda: list(server.stubs.executor.InvokeStream(iter([unknown]))))
    assert found.reason == "MESSAGE_TOO_LARGE"
