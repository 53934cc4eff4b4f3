"""``kaasctl function``: registered requests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from kaas_client.cli.files import (
    STANDARD_STREAM,
    check_readable,
    check_writable,
    open_input,
    open_output,
    parse_assignments,
)
from kaas_client.cli.session import connected
from kaas_client.cli.submit import DeviceOption, RequestFile, TraceOption, print_printed, print_result, read_request, write_trace
from kaas_client.types import Key

if TYPE_CHECKING:
    from kaas_client._rpcs import Binding

app = typer.Typer(no_args_is_help=True, help="Register, invoke, list and remove functions.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The function's name.")]


@app.command("register")
def register(ctx: typer.Context, name: NameArgument, request: RequestFile) -> None:
    """Register a request under a name, replacing what was there."""
    spec = read_request(request)
    with connected(ctx) as (client, _):
        client.register(name, spec)


@app.command("invoke")
def invoke(
    ctx: typer.Context,
    name: NameArgument,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="BUFFER=FILE", help="Load this buffer with this file's bytes. Repeatable."),
    ] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--key", metavar="BUFFER=KEY", help="Bind this buffer to this key. Repeatable.")
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option("--output", metavar="BUFFER=FILE", help="Write this buffer to this file; - is standard output. Repeatable."),
    ] = None,
    device: DeviceOption = "",
    trace: TraceOption = None,
) -> None:
    """Run a registered function once."""
    sources = parse_assignments("--input", "BUFFER=FILE", inputs or [])
    rebound = parse_assignments("--key", "BUFFER=KEY", keys or [])
    targets = parse_assignments("--output", "BUFFER=FILE", outputs or [])
    if both := {source.name for source in sources} & {key.name for key in rebound}:
        raise typer.BadParameter(f"{min(both)!r} is given both a file and a key", param_hint="--key")
    check_readable([source.value for source in sources])
    written = [*(target.value for target in targets), *([] if trace is None else [trace])]
    check_writable(written)
    bindings: dict[str, Binding] = {key.name: Key(key.value) for key in rebound}
    for source in sources:
        with open_input(source.value) as file:
            bindings[source.name] = file.read()
    with connected(ctx) as (client, printer):
        returns = [target.name for target in targets]
        result = client.invoke(name, bindings, returns=returns, device=device, trace=trace is not None)
        print_printed(result)
        for target in targets:
            with open_output(target.value) as file:
                file.write(result[target.name])
        if trace is not None:
            write_trace(trace, result)
        if STANDARD_STREAM not in written:
            print_result(printer, result)


@app.command("ls")
def ls(
    ctx: typer.Context, prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Only names that start with this.")] = ""
) -> None:
    """List registered functions."""
    with connected(ctx) as (client, printer):
        rows = [
            {
                "name": function.name,
                "kernels": [kernel.name for kernel in function.request.spec.kernels],
                "iterations": function.request.spec.iterations,
                "create_time": function.create_time,
                "request": json.loads(function.request.to_json()),
                "damaged": function.damaged,
            }
            for function in client.functions(prefix)
        ]
        printer.stored(rows, ["name", "kernels", "iterations", "create_time"])


@app.command("rm")
def rm(ctx: typer.Context, names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The names to remove.")]) -> None:
    """Remove functions."""
    with connected(ctx) as (client, _):
        for name in names:
            client.delete_function(name)
