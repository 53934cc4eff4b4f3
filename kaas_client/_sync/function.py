# Generated from kaas_client/_async/function.py by `make generate`; do not edit.
"""A registered function as a callable: its request, and its buffers by name. For threads."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kaas_client._convert import FunctionFields
from kaas_client._orders import columns_of, in_their_order
from kaas_client._rpcs import Binding
from kaas_client.types import Result
from kaas_core.request import buffer_arguments


class Invoker(Protocol):
    """What a function uses of its client."""

    def invoke(
        self,
        name: str,
        bindings: Mapping[str, Binding],
        *,
        returns: Iterable[str],
        device: str,
        trace: bool,
        request_id: str,
        group: str,
        priority: int,
        timeout: float | None,
    ) -> Result: ...


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How a function is called; the parameters of ``Client.invoke``."""

    returns: Iterable[str] | None = None
    """None: all that a kernel writes."""
    device: str = ""
    trace: bool = False
    request_id: str = ""
    group: str = ""
    priority: int = 0
    timeout: float | None = None


_NO_OPTIONS = CallOptions()
_OLD_KEYWORDS = frozenset(("inputs", "returns", "device", "timeout"))
"""Of a call, before there was ``options``."""


class Function:
    """A registered function. Call it with its buffers by name; ``options`` says how else."""

    def __init__(self, client: Invoker, fields: FunctionFields, options: CallOptions = _NO_OPTIONS) -> None:
        self._client = client
        self._fields = fields
        self._options = options
        self.name = fields.name
        self.request = fields.request
        """As registered, defaults filled in."""
        self._columns = columns_of(fields.request.spec)
        self.create_time = fields.create_time
        self.damaged = fields.damaged
        """Only its name is known, and calling it fails; only in a list."""
        written = (
            use.buffer
            for kernel in fields.request.spec.kernels
            for argument in kernel.arguments
            for use in buffer_arguments(argument)
            if use.access.writes
        )
        self.outputs = tuple(dict.fromkeys(written))
        """The buffers that a kernel writes, temporary uses aside: what a call returns by default."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}({', '.join(self._buffers())})>"

    def __call__(self, /, **buffers: Binding) -> Result:
        """Run it once, with bytes or arrays to load in place of the store's values, or ``Key`` for another key, by buffer.

        An array is sent in the order of its buffer: that of C, unless the request says Fortran's.

        How it is called otherwise is said by ``options``; the keywords ``inputs``, ``returns``, ``device`` and ``timeout`` are
        deprecated, and those of a function that has no buffer of that name. Raises ``TypeError`` for a buffer that the function
        does not have.
        """
        known = self._buffers()
        options = self._options
        if not _OLD_KEYWORDS.isdisjoint(buffers):
            buffers, options = _without_old_keywords(buffers, known, options)
        if not self.damaged and (unknown := [name for name in buffers if name not in known]):
            raise TypeError(f"function {self.name!r} has no buffer {unknown[0]!r}; it has {', '.join(known)}")
        result = self._client.invoke(
            self.name,
            in_their_order(self._columns, buffers) if self._columns else buffers,
            returns=self.outputs if options.returns is None else options.returns,
            device=options.device,
            trace=options.trace,
            request_id=options.request_id,
            group=options.group,
            priority=options.priority,
            timeout=options.timeout,
        )
        return replace(result, request=self.request.spec)

    def options(
        self,
        *,
        returns: Iterable[str] | None = None,
        device: str = "",
        trace: bool = False,
        request_id: str = "",
        group: str = "",
        priority: int = 0,
        timeout: float | None = None,
    ) -> Function:
        """Return the same function, called so: ``dot.options(group="research")(a=a, b=b)``.

        ``returns`` names the buffers to return, by default all that a kernel writes; the rest is as for ``Client.invoke``. They
        take the place of all options before.
        """
        options = CallOptions(returns, device, trace, request_id, group, priority, timeout)
        return Function(self._client, self._fields, options)

    def _buffers(self) -> list[str]:
        return [spec.name for spec in self.request.spec.buffers]


def _without_old_keywords(
    given: dict[str, Binding], known: Sequence[str], options: CallOptions
) -> tuple[dict[str, Binding], CallOptions]:
    """Return the buffers of a call, and its options, where some of these are given as buffers are."""
    buffers = dict(given)
    old: dict[str, Any] = {name: buffers.pop(name) for name in _OLD_KEYWORDS if name in buffers and name not in known}
    if not old:
        return buffers, options
    names = ", ".join(sorted(old))
    warnings.warn(
        f"calling a function with {names} is deprecated: options go to function.options(…), and buffers by any name to **buffers",
        DeprecationWarning,
        stacklevel=3,
    )
    inputs = old.pop("inputs", None) or {}
    changed = {name: value for name, value in old.items() if value is not None and (name != "device" or value)}
    return {**inputs, **buffers}, replace(options, **changed)
