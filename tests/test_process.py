"""What each process sets up when it starts."""

from __future__ import annotations

import logging
import sys

from kaasd.process import LogFormatter


def formatted(message: str, *arguments: object) -> str:
    record = logging.LogRecord("kaasd.front", logging.WARNING, "", 0, message, arguments, None)
    return LogFormatter("%(levelname)s %(name)s: %(message)s").format(record)


def test_what_does_not_print_is_escaped() -> None:
    assert formatted("key %s", "a\x1b[31m\r\x00\u2028é") == "WARNING kaasd.front: key a\\x1b[31m\\r\\x00\\u2028é"


def test_a_name_cannot_look_like_a_record() -> None:
    assert (
        formatted("key %s", "a\nERROR kaasd.app: all is lost") == "WARNING kaasd.front: key a\n    ERROR kaasd.app: all is lost"
    )


def test_a_traceback_is_kept() -> None:
    try:
        raise ValueError("a\tb")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    lines = LogFormatter("%(message)s").format(record).splitlines()
    assert lines[0] == "failed"
    assert lines[-1] == "    ValueError: a\tb"
    assert all(line.startswith("    ") for line in lines[1:])
