"""What both kinds of client's functions have in common: a registered request, and its buffers by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kaas_client._calls import Binding
from kaas_client._convert import FunctionFields
from kaas_core.request import BufferArgument


class BaseFunction:
    """A function registered on a server."""

    def __init__(self, client: object, fields: FunctionFields) -> None:
        self._client = client
        self.name = fields.name
        self.request = fields.request
        """As registered, defaults filled in."""
        self.create_time = fields.create_time
        written = (
            argument.buffer
            for kernel in fields.request.spec.kernels
            for argument in kernel.arguments
            if isinstance(argument, BufferArgument) and argument.access.writes
        )
        self.outputs = tuple(dict.fromkeys(written))
        """The buffers that a kernel writes, temporary uses aside: what a call returns by default."""

    def __repr__(self) -> str:
        buffers = ", ".join(spec.name for spec in self.request.spec.buffers)
        return f"<{type(self).__name__} {self.name}({buffers})>"

    def _bindings(self, inputs: Mapping[str, Binding] | None, buffers: Mapping[str, Binding]) -> dict[str, Binding]:
        """Return all bindings of a call. Raises ``TypeError``, as a call of a Python function would."""
        bindings = {**(inputs or {}), **buffers}
        known = [spec.name for spec in self.request.spec.buffers]
        if unknown := [name for name in bindings if name not in known]:
            raise TypeError(f"function {self.name!r} has no buffer {unknown[0]!r}; it has {', '.join(known)}")
        return bindings

    def _returns(self, returns: Iterable[str] | None) -> Iterable[str]:
        return self.outputs if returns is None else returns
