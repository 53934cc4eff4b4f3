"""``kaasctl submit``: run a request once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from kaas_client import Request, Result, chrome_trace, errors
from kaas_client.cli.files import (
    STANDARD_STREAM,
    check_readable,
    check_writable,
    open_input,
    open_output,
    parse_assignments,
)
from kaas_client.cli.output import Printer
from kaas_client.cli.progress import transfer
from kaas_client.cli.session import connected
from kaas_core.uses import buffer_uses

RequestFile = Annotated[str, typer.Argument(metavar="REQUEST", help="A file with the request's JSON; - is standard input.")]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="Where to run; default: the server chooses.")]
TraceOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Write a trace to this file, for ui.perfetto.dev; - is standard output. The kernels take longer.",
    ),
]


def read_request(path: str) -> Request:
    """Return the request of a JSON file. Raises ``InvalidRequestError``, ``typer.BadParameter``."""
    with open_input(path) as file:
        return Request.from_json(file.read())


def check_keys_are_read(request: Request, keys: Sequence[str]) -> None:
    """Refuse keys whose value the request neither loads nor keeps in part. Raises ``typer.BadParameter``."""
    uses = buffer_uses(request.spec)
    stored = [spec for spec in request.spec.buffers if spec.name in uses and not spec.ephemeral]
    read = list(dict.fromkeys(spec.store_key for spec in stored if not uses[spec.name].replaces_value(spec)))
    for key in keys:
        if key not in read:
            known = f"the keys that it reads are {', '.join(read)}" if read else "it reads no key"
            raise typer.BadParameter(f"the request does not read the key {key!r}; {known}", param_hint="--input")


def print_printed(result: Result) -> None:
    """Pass on what device code printed, to standard error: standard output is for the outputs."""
    if result.printed:
        typer.echo(result.printed, err=True, nl=not result.printed.endswith("\n"))


def write_trace(path: str, result: Result) -> None:
    """Write the trace of a result to a file, and warn of what it lacks. Raises ``KaasError`` if there is none."""
    if result.trace is None:
        raise errors.KaasError("the request has run, but the server sent no trace: it is too old to make one")
    with open_output(path) as file:
        file.write(chrome_trace.to_json(result))
    if result.trace.launches_left_out:
        typer.echo(f"the trace lacks the last {result.trace.launches_left_out} launches", err=True)


def print_result(printer: Printer, result: Result) -> None:
    """Print how a request ran; its outputs went to files."""
    printer.record({"device": result.device, "versions": result.versions, "timing": result.timing})


def submit(
    ctx: typer.Context,
    request: RequestFile,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="KEY=FILE", help="Store this file first under this key, which the request reads. Repeatable."
        ),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            metavar="KEY=FILE",
            help="Write this key's value to this file at the end; - is standard output. Repeatable.",
        ),
    ] = None,
    device: DeviceOption = "",
    trace: TraceOption = None,
) -> None:
    """Run a request once: put inputs, run, get outputs."""
    sources = parse_assignments("--input", "KEY=FILE", inputs or [])
    targets = parse_assignments("--output", "KEY=FILE", outputs or [])
    check_readable([request, *(source.value for source in sources)])
    written = [*(target.value for target in targets), *([] if trace is None else [trace])]
    check_writable(written)
    spec = read_request(request)
    check_keys_are_read(spec, [source.name for source in sources])
    with connected(ctx) as (client, printer):
        for source in sources:
            with open_input(source.value) as file, transfer(source.name) as progress:
                client.put(source.name, file, progress=progress)
        result = client.submit(spec, device=device, trace=trace is not None)
        print_printed(result)
        for target in targets:
            with open_output(target.value) as file, transfer(target.name) as progress:
                client.get(target.name, into=file, progress=progress)
        if trace is not None:
            write_trace(trace, result)
        if STANDARD_STREAM not in written:
            print_result(printer, result)
