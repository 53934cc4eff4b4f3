"""Requests checked once, and what a caller's buffers are checked against."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kaas.v1 import types_pb2
from kaas_core.errors import InvalidRequestError
from kaasd.front.validated_requests import RequestValidator, ValidatedRequest

LIBRARY = "sha256:" + "a" * 64


def request(*uses: tuple[str, int], size: int = 8, ephemeral: tuple[str, ...] = ()) -> types_pb2.Request:
    """Return a request of one kernel that uses its buffers so."""
    names = dict.fromkeys(name for name, _ in uses)
    return types_pb2.Request(
        kernels=[
            types_pb2.KernelSpec(
                library=LIBRARY,
                name="k",
                grid=types_pb2.Dim3(x=1),
                block=types_pb2.Dim3(x=1),
                arguments=[
                    types_pb2.Argument(buffer=types_pb2.BufferArgument(buffer=name, access=access)) for name, access in uses
                ],
            )
        ],
        buffers=[
            *(types_pb2.BufferSpec(name=name, size_bytes=size, ephemeral=name in ephemeral) for name in names),
            types_pb2.BufferSpec(name="unused", size_bytes=1),
        ],
    )


@pytest.fixture
def checked() -> ValidatedRequest:
    message = request(
        ("in", types_pb2.ACCESS_INPUT),
        ("out", types_pb2.ACCESS_OUTPUT),
        ("both", types_pb2.ACCESS_INOUT),
        ("scratch", types_pb2.ACCESS_TEMPORARY),
        ("passing", types_pb2.ACCESS_INPUT),
        ephemeral=("passing",),
    )
    return RequestValidator().check(message)


def fields(call: Callable[[], object]) -> list[str]:
    with pytest.raises(InvalidRequestError) as raised:
        call()
    return [violation.field for violation in raised.value.violations]


def test_what_may_be_given_inline(checked: ValidatedRequest) -> None:
    checked.check_inputs({"in": bytes(8), "both": bytes(8), "passing": bytes(8)})
    bad = {"out": bytes(8), "scratch": bytes(8), "unused": b"1", "absent": b"", "in": bytes(9)}
    assert fields(lambda: checked.check_inputs(bad)) == [f'inputs["{name}"]' for name in bad]


def test_what_may_be_bound_to_a_key(checked: ValidatedRequest) -> None:
    checked.check_keys({"in": "k", "out": "k2", "both": "ä" * 200})
    bad = {"scratch": "k", "passing": "k", "unused": "k", "absent": "k", "in": "", "out": "ä" * 201}
    assert fields(lambda: checked.check_keys(bad)) == [f'bindings["{name}"]' for name in bad]


def test_what_may_be_returned(checked: ValidatedRequest) -> None:
    assert checked.check_return_buffers([]) == 0
    assert checked.check_return_buffers(["out", "scratch", "out", "passing"]) == 24
    assert fields(lambda: checked.check_return_buffers(["out", "absent", "unused"])) == [
        "return_buffers[1]",
        "return_buffers[2]",
    ]


def test_a_request_seen_before_is_not_validated_again() -> None:
    checker = RequestValidator()
    message = request(("a", types_pb2.ACCESS_INPUT))
    same = types_pb2.Request.FromString(message.SerializeToString())
    assert checker.check(message) is checker.check(same)
    assert checker.check(message) is not checker.check(request(("a", types_pb2.ACCESS_INPUT), size=9))


def test_a_bad_request_is_never_remembered() -> None:
    checker = RequestValidator()
    for _ in range(2):
        assert fields(lambda: checker.check(request(("a", types_pb2.ACCESS_UNSPECIFIED)))) == ["kernels[0].arguments[0]"]


def test_the_cache_is_bounded() -> None:
    first = request(("a", types_pb2.ACCESS_INPUT), size=1)
    checker = RequestValidator(limit_bytes=3 * len(first.SerializeToString()))
    kept = checker.check(first)
    for size in range(2, 10):
        checker.check(request(("a", types_pb2.ACCESS_INPUT), size=size))
    assert checker.check(first) is not kept
