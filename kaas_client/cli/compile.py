"""``kaasctl compile`` and ``kaasctl run``: CUDA C++ from a file, with arrays in ``.npy`` files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kaas_client import Result
from kaas_client.arguments import BufferSpec, Literal, inout, inp, out
from kaas_client.cli.files import check_writable, open_output
from kaas_client.cli.npy import read_npy
from kaas_client.cli.session import connected, session_of
from kaas_client.cli.submit import DeviceOption, print_printed, print_result
from kaas_client.errors import KaasError

if TYPE_CHECKING:
    import numpy as np

    from kaas_client.kernels import Compiled

SOURCE_HELP = "CUDA C++; PTX where its name ends in .ptx, machine code in .cubin or .fatbin."
SourceFile = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help=SOURCE_HELP)]
OptionOption = Annotated[
    list[str] | None, typer.Option("--option", metavar="OPTION", help="An option of NVRTC, as --option=-DN=4. Repeatable.")
]
ARGUMENT_FORMS = "f32=2.0 u64=1000 x=in:x.npy y=inout:y.npy,result.npy c=out:f4,32x32,c.npy"
NUMBERS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f16", "f32", "f64")


@dataclass(frozen=True, slots=True)
class FoundKernel:
    """A kernel of a compiled file."""

    kernel: str
    """Its name in the source."""
    entry: str
    parameters: list[int]
    """Their sizes in bytes."""


def compile_file(
    ctx: typer.Context,
    file: SourceFile,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Where the image goes; default: FILE's name with .ptx.")
    ] = None,
    kernel: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A kernel that is a template, as 'scale<float>'. Repeatable.")
    ] = None,
    target: Annotated[str, typer.Option(metavar="sm_NN", help="The architecture that it is for.")] = "sm_80",
    option: OptionOption = None,
) -> None:
    """Compile CUDA C++ to PTX, with no GPU and no daemon, and list its kernels."""
    from kaas_client import kernels

    written = output or str(file.with_suffix(".ptx"))
    check_writable([written])
    with kernel_errors():
        made = kernels.cuda(file, options=option or [], name_expressions=kernel or []).compile(target=target).made
    with open_output(written) as image:
        image.write(made.image)
    found = [
        FoundKernel(name, entry.name, [each.size_bytes for each in entry.parameters or ()])
        for name, entry in sorted(made.entries.items())
    ]
    session_of(ctx).printer.record(
        {"file": written, "compiler": made.compiler, "target": made.target, "ptx_version": made.ptx_version, "kernels": found}
    )


@dataclass
class Arguments:
    """What the options ``--arg`` say."""

    passed: list[BufferSpec | Literal] = field(default_factory=list)
    inputs: dict[str, np.ndarray[Any, np.dtype[Any]]] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    """The files of what comes back, by buffer."""


def run(
    ctx: typer.Context,
    file: SourceFile,
    kernel: Annotated[str, typer.Option(metavar="NAME", help="The kernel's name in the source; a template as 'scale<float>'.")],
    grid: Annotated[str, typer.Option(metavar="X[,Y[,Z]]", help="Blocks.")],
    block: Annotated[str, typer.Option(metavar="X[,Y[,Z]]", help="Threads of a block.")] = "",
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="ARGUMENT", help=f"An argument, in the order of the parameters, as {ARGUMENT_FORMS}. Repeatable."),
    ] = None,
    shared_memory_bytes: Annotated[int, typer.Option(metavar="N", min=0, help="Dynamic shared memory of a block.")] = 0,
    option: OptionOption = None,
    device: DeviceOption = "",
) -> None:
    """Compile a file for the server's devices and run one of its kernels once. No array is stored; the library is uploaded.

    Numbers have their type: f32=2.0, u64=1000. Arrays come from .npy files, x=in:x.npy, and go there: y=inout:y.npy,result.npy
    for one that the kernel reads and writes, c=out:f4,32x32,c.npy for one of this dtype and shape that it writes.
    """
    from kaas_client import Request, kernels
    from kaas_client._arrays import sendable
    from kaas_client._sync.bound import common_target
    from kaas_client.kernels._compiled import forms_of

    sizes = [_size("--grid", grid), _size("--block", block) if block else None]
    arguments = parse_arguments(arg or [])
    check_writable(list(arguments.targets.values()))
    with kernel_errors():
        compiled = source_of(file, kernel, option or [], kernels)
        with connected(ctx) as (client, printer):
            devices = [each for each in client.devices() if device in ("", each.name)]
            name, ptx_version = common_target(devices)
            compiled = compiled.compile(target=name, ptx_version=ptx_version)
            launch = compiled.launcher(*sizes, shared_memory_bytes=shared_memory_bytes or None)(*arguments.passed)
            sent = {name: sendable(name, array) for name, array in arguments.inputs.items()}
            forms = forms_of([launch], {name: form for name, (_, form) in sent.items() if form is not None})
            library = client.upload(compiled.image, file_name=file.name)
            request = Request([launch.kernel(library, forms)])
            inputs = {name: value for name, (value, _) in sent.items()}
            result = client.submit(request, inputs=inputs, returns=arguments.targets, device=device)
            print_printed(result)
            _write(result, arguments.targets)
            print_result(printer, result)


def source_of(file: Path, kernel: str, options: list[str], kernels: Any) -> Compiled:
    """Return the kernel of a file, by what the file's name ends in."""
    if file.suffix == ".ptx":
        made: Compiled = kernels.ptx(file)[kernel]
    elif file.suffix in (".cubin", ".fatbin"):
        made = kernels.fatbin(file)[kernel]
    else:
        made = kernels.cuda(file, options=options)[kernel]
    return made


class kernel_errors:  # used as a function
    """Turns a compiler's errors into those that ``kaasctl`` shows."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None and kind is not None and kind.__module__.startswith("kaas_client.kernels"):
            raise KaasError(str(error)) from None
        if isinstance(error, ImportError):
            raise KaasError(str(error)) from None


def parse_arguments(texts: list[str]) -> Arguments:
    """Return what ``--arg`` says. Raises ``typer.BadParameter``."""
    found = Arguments()
    for text in texts:
        name, equals, value = text.partition("=")
        kind, colon, rest = value.partition(":")
        if equals and name in NUMBERS and value:
            found.passed.append(_number(text, name, value))
        elif equals and name and colon and kind in _BUFFERS:
            _BUFFERS[kind](found, text, name, rest)
        else:
            raise _bad(text, f"an argument has one of these forms: {ARGUMENT_FORMS}")
    return found


def _number(text: str, kind: str, value: str) -> Literal:
    from kaas_client import arguments

    try:
        number: int | float = float(value) if kind.startswith("f") else int(value, 0)
        literal: Literal = getattr(arguments, kind)(number)
    except ValueError:
        raise _bad(text, f"{value!r} is no number of type {kind}") from None
    return literal


def _input(found: Arguments, text: str, name: str, file: str) -> None:
    found.inputs[name] = _load(text, file)
    found.passed.append(inp(name, ephemeral=True))


def _inout(found: Arguments, text: str, name: str, rest: str) -> None:
    file, comma, target = rest.partition(",")
    if not comma or not target:
        raise _bad(text, f"an array that is read and written names two files: {name}=inout:FILE.npy,RESULT.npy")
    found.inputs[name] = _load(text, file)
    found.targets[name] = target
    found.passed.append(inout(name, ephemeral=True))


def _output(found: Arguments, text: str, name: str, rest: str) -> None:
    dtype, shape, target = (*rest.split(",", 2), "", "")[:3]
    if not target:
        raise _bad(text, f"an array that is written has dtype, shape and file: {name}=out:f4,32x32,FILE.npy")
    try:
        dimensions = [int(each) for each in shape.split("x")]
        found.passed.append(out(name, ephemeral=True, dtype=dtype, shape=dimensions))
    except (ValueError, TypeError) as error:
        raise _bad(text, str(error)) from None
    found.targets[name] = target


_BUFFERS: dict[str, Callable[[Arguments, str, str, str], None]] = {"in": _input, "inout": _inout, "out": _output}


def _load(text: str, file: str) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        with Path(file).open("rb") as opened:
            return read_npy(file, opened)
    except OSError as error:
        raise _bad(text, f"{file}: {error.strerror}") from None


def _write(result: Result, targets: dict[str, str]) -> None:
    import numpy as np

    for name, target in targets.items():
        with open_output(target) as file:
            np.lib.format.write_array(file, result.array(name), allow_pickle=False)


def _size(option: str, text: str) -> list[int]:
    try:
        numbers = [int(each) for each in text.split(",")]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 3:
        raise typer.BadParameter(f"{text!r} is not of the form X[,Y[,Z]]", param_hint=option)
    return numbers


def _bad(text: str, words: str) -> typer.BadParameter:
    return typer.BadParameter(f"{text!r}: {words}", param_hint="--arg")
