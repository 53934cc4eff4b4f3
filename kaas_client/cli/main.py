"""``kaasctl``: the command line of kaasd. One file a noun; here are the global options, and how failures are shown.

Exit codes: 0 ok, 1 failed (a bad request too), 2 wrong usage or an unreadable file, 3 cannot connect, 4 not found, 6 timed out,
130 interrupted.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]

from kaas_client import errors
from kaas_client.cli import (
    compile,
    completion,
    device,
    function,
    group,
    kv,
    library,
    quarantine,
    request,
    server,
    store,
    submit,
    top,
)
from kaas_client.cli.completion import COMPLETE_VARIABLE, PROGRAM
from kaas_client.cli.output import Format
from kaas_client.cli.session import Session
from kaas_core.address import ADDRESS_VARIABLE, default_connect_address, parse_address

EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (errors.ConnectionFailedError, 3),
    (errors.NotFoundError, 4),
    (errors.DeadlineExceededError, 6),
    (Exception, 1),
)
"""The first class that an error belongs to."""


class RootGroup(typer.core.TyperGroup):
    """The one place where a failed call or an unwritable file becomes a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # The reader of our output has closed it; typer exits quietly.
        except (errors.KaasError, OSError) as error:
            typer.echo(f"{PROGRAM}: {describe(error)}", err=True)
            raise typer.Exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind))) from None


app = typer.Typer(
    name=PROGRAM,
    cls=RootGroup,
    no_args_is_help=True,
    epilog="Exits with 0 ok, 1 failed, 2 wrong usage, 3 cannot connect, 4 not found, 6 timed out, 130 interrupted.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("submit")(submit.submit)
app.command("compile")(compile.compile_file)
app.command("run")(compile.run)
app.add_typer(kv.app, name="kv")
app.add_typer(library.app, name="library")
app.add_typer(function.app, name="function")
app.add_typer(device.app, name="device")
app.add_typer(group.app, name="group")
app.add_typer(request.app, name="request")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(store.app, name="store")
app.command("stats")(server.stats)
app.command("top")(top.top)
app.command("health")(server.health)
app.command("drain")(server.drain)
app.command("resume")(server.resume)
app.command("version")(server.version)
app.command("completion")(completion.completion)


def _address(text: str | None) -> str:
    try:
        return parse_address(text) if text else default_connect_address()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.callback()
def root(
    ctx: typer.Context,
    address: Annotated[
        str | None,
        typer.Option(
            envvar=ADDRESS_VARIABLE,
            metavar="ADDRESS",
            help="The server: unix:PATH, /PATH or HOST:PORT. Default: the usual socket.",
        ),
    ] = None,
    output: Annotated[
        Format, typer.Option("--output", "-o", envvar="KAAS_OUTPUT", case_sensitive=False, help="How to print results.")
    ] = Format.TABLE,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, metavar="SECONDS", help="Limit for each call; kernels that run longer are stopped.")
    ] = None,
    group: Annotated[
        str,
        typer.Option(
            "--group",
            envvar="KAAS_GROUP",
            metavar="NAME",
            help="Whom calls are for. Default: the group of the server's socket, or default.",
        ),
    ] = "",
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Certificates that the server's is signed by: the connection is encrypted (KAAS_TLS_CA)."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own certificate, where the server asks for one (KAAS_TLS_CERT).")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The key of your certificate (KAAS_TLS_KEY).")] = None,
) -> None:
    """Run requests of GPU kernels on a kaasd server, and manage its store, libraries and functions."""
    ctx.obj = Session(_address(address), output, timeout, group, tls_ca, tls_cert, tls_key)


def describe(error: Exception) -> str:
    """Return the text of an error: one line, and any details indented below it."""
    if isinstance(error, errors.InvalidRequestError):
        return "the request is not valid:" + "".join(f"\n  {violation}" for violation in error.violations)
    if isinstance(error, errors.KernelFaultError):
        return _describe_fault(error)
    if isinstance(error, errors.DeadlineExceededError):
        return f"timed out: {error}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return str(error)


def _describe_fault(error: errors.KernelFaultError) -> str:
    """Add the fault's name and place if the server's message lacks them, then the report."""
    details = error.metadata
    lines = [error.message]
    for name, label in (("fault", "fault"), ("kernel", "kernel"), ("kernel_index", "index in the request")):
        value = details.get(name)
        if value and (name == "kernel_index" or value not in error.message):
            lines.append(f"  {label}: {value}")
    if report := details.get("report"):
        lines.append(textwrap.indent(report.rstrip("\n"), "  "))
    return "\n".join(lines)


def main() -> None:
    """Run ``kaasctl`` with this process's command line, and exit."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # What fails is said by us, and not by gRPC's own log beside it.
    if COMPLETE_VARIABLE in os.environ:
        completion_init()
    app(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
