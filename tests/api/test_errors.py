"""Errors as statuses: nothing that is too long for a client's trailing metadata, and nothing cut that fits."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2

from kaas_core.errors import InternalError, InvalidRequestError, KaasError, KeyNotFoundError, Violation, WorkerRestartingError
from kaasd.api.errors import MAX_DETAILS_BYTES, MAX_MESSAGE_BYTES, as_kaas_error, to_status, to_stream_error


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("x" * MAX_MESSAGE_BYTES, "x" * MAX_MESSAGE_BYTES),
        ("x" * (MAX_MESSAGE_BYTES + 1), "x" * (MAX_MESSAGE_BYTES - 3) + "…"),
        ("ä" * MAX_MESSAGE_BYTES, "ä" * ((MAX_MESSAGE_BYTES - 3) // 2) + "…"),
        ("a\udcffb", "a?b"),
    ],
    ids=["as long as allowed", "one byte longer", "two bytes a character", "not Unicode"],
)
def test_a_message_is_cut_to_what_is_allowed(text: str, sent: str) -> None:
    assert to_status(InternalError(text)).message == sent
    assert len(sent.encode()) <= MAX_MESSAGE_BYTES


def test_details_are_cut_together() -> None:
    error = KeyNotFoundError("no key", {"a": "x" * (MAX_DETAILS_BYTES - 101), "b": "y" * 200, "c": "z"})
    info = error_details_pb2.ErrorInfo()
    to_status(error).details[0].Unpack(info)
    assert (info.reason, info.domain) == ("KEY_NOT_FOUND", "kaas")
    assert info.metadata["a"] == "x" * (MAX_DETAILS_BYTES - 101)
    assert info.metadata["b"] == "y" * 97 + "…"  # the name of "a" has taken one byte of 101
    assert info.metadata["c"] == "…"


@pytest.mark.parametrize(("size", "sent"), [(MAX_DETAILS_BYTES // 4 - 1, 4), (MAX_DETAILS_BYTES // 4, 3), (MAX_DETAILS_BYTES, 1)])
def test_as_many_violations_as_there_is_room_for(size: int, sent: int) -> None:
    error = InvalidRequestError([Violation("f", "x" * size)] * 5)
    bad = error_details_pb2.BadRequest()
    to_status(error).details[1].Unpack(bad)
    assert len(bad.field_violations) == sent
    assert bad.field_violations[0].description.startswith("x" * 500)


def test_when_to_try_again() -> None:
    retry = error_details_pb2.RetryInfo()
    status = to_status(WorkerRestartingError("soon"))
    status.details[1].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() == round(WorkerRestartingError("").retry_after_s * 1e9)
    assert len(to_status(KeyNotFoundError("no")).details) == 1
    assert to_stream_error(WorkerRestartingError("soon")).details == status.details


def test_a_defect_is_told_by_its_place_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    known: KaasError = KeyNotFoundError("no key")
    assert as_kaas_error(known) is known
    assert not caplog.records
    told = as_kaas_error(ValueError("a secret"))
    (record,) = caplog.records
    assert isinstance(told, InternalError)
    assert told.metadata["incident"] in record.getMessage()
    assert told.metadata["incident"] in told.message
    assert "secret" not in told.message
    assert record.exc_info is not None and isinstance(record.exc_info[1], ValueError)
