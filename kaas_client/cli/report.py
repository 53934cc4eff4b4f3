"""Errors as a person at a terminal would want to read them."""

from __future__ import annotations

import textwrap

from kaas_client import errors


def describe(error: Exception) -> str:
    """Return the text of an error: one line, and indented below it whatever more there is to say."""
    if isinstance(error, errors.InvalidRequestError):
        return "the request is wrong:" + "".join(f"\n  {violation}" for violation in error.violations)
    if isinstance(error, errors.KernelFaultError):
        return _describe_fault(error)
    if isinstance(error, errors.DeadlineExceededError):
        return f"timed out: {error}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return str(error)


def _describe_fault(error: errors.KernelFaultError) -> str:
    """The fault's name and place go into the first line unless the server's message has them, the report below it."""
    details = error.metadata
    lines = [error.message]
    for name, label in (("fault", "fault"), ("kernel", "kernel"), ("kernel_index", "index in the request")):
        value = details.get(name)
        if value and (name == "kernel_index" or value not in error.message):
            lines.append(f"  {label}: {value}")
    if report := details.get("report"):
        lines.append(textwrap.indent(report.rstrip("\n"), "  "))
    return "\n".join(lines)
