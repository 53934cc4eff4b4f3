# Generated from kaas_client/_async/function.py by `make generate`; do not edit.
"""A registered function as a callable: its request, and its buffers by name. For threads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from kaas_client._convert import FunctionFields
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


class Function:
    """A registered function. Call it with its buffers by name; ``options`` says how else."""

    def __init__(self, client: Invoker, fields: FunctionFields, options: CallOptions = _NO_OPTIONS) -> None:
        self._client = client
        self._fields = fields
        self._options = options
        self.name = fields.name
        self.request = fields.request
        """As registered, defaults filled in."""
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

    def __call__(
        self,
        *,
        inputs: Mapping[str, Binding] | None = None,
        returns: Iterable[str] | None = None,
        device: str = "",
        timeout: float | None = None,
        **buffers: Binding,
    ) -> Result:
        """Run it once.

        ``buffers`` are bytes or arrays to load in place of the store's values, or ``Key`` for another key; ``inputs`` is the same
        for names that are not valid identifiers. ``returns`` names the buffers to return, by default all that a kernel writes.
        Raises ``TypeError`` for a buffer that the function does not have.
        """
        bindings = {**(inputs or {}), **buffers}
        known = self._buffers()
        if not self.damaged and (unknown := [name for name in bindings if name not in known]):
            raise TypeError(f"function {self.name!r} has no buffer {unknown[0]!r}; it has {', '.join(known)}")
        options = self._options
        returns = options.returns if returns is None else returns
        result = self._client.invoke(
            self.name,
            bindings,
            returns=self.outputs if returns is None else returns,
            device=device or options.device,
            trace=options.trace,
            request_id=options.request_id,
            group=options.group,
            priority=options.priority,
            timeout=options.timeout if timeout is None else timeout,
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
