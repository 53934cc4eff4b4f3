"""Every setting of the daemon, once: its name, its default, what it accepts, and its manual.

A setting comes from the first of these that names it: the command line, a ``KAASD_…`` environment variable, the TOML file, its
default. Nothing is read when this module is imported.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import textwrap
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from kaas.v1 import admin_pb2
from kaas_core import __version__
from kaas_core.address import default_listen_address, is_loopback, parse_address
from kaas_core.errors import InvalidRequestError
from kaas_core.validation import MAX_ALL_ARGUMENTS, MAX_BUFFERS, MAX_KERNELS
from kaasd.devices.emulator.options import EMULATOR_CHECKS, EmulatorOptions
from kaasd.devices.registry import AUTO, kind_of
from kaasd.front import grants
from kaasd.scheduling import Policy
from kaasd.setting_values import (
    one_of,
    parse_busy_poll,
    parse_count,
    parse_duration,
    parse_path,
    parse_seed,
    parse_size,
    parse_switch,
    parse_text,
    parse_version,
    size_from,
    whole_from,
)
from kaasd.store.base import Durability

_EMULATOR = EmulatorOptions()
VARIABLE_PREFIX = "KAASD_"
_GROUPS = "groups"
_GROUP_OF_LISTENER = ",group="


class SettingsError(Exception):
    """A setting is unknown or its value is bad; the message names where it stands and the setting."""


def _parse_compute_capability(value: object) -> tuple[int, int]:
    return parse_version(value, "a compute capability")


def _parse_ptx_version(value: object) -> tuple[int, int]:
    return parse_version(value, "a version of PTX")


def _parse_listener(value: object) -> str:
    text = parse_text(value)
    address, group = split_listener(text)
    address = parse_address(address)
    if group and not address.startswith("unix:"):
        raise ValueError(f"{text!r}: only a unix socket can be for one group")
    if text.endswith(_GROUP_OF_LISTENER):
        raise ValueError(f"{text!r}: expected unix:PATH,group=NAME")
    return f"{address}{_GROUP_OF_LISTENER}{group}" if group else address


def split_listener(text: str) -> tuple[str, str]:
    """Return the address of one of ``Settings.listen``, and the group that all calls by it are for; empty, where they say it."""
    address, _, group = text.partition(_GROUP_OF_LISTENER)
    return address, group


def _parse_device(value: object) -> str:
    name = parse_text(value)
    if name != AUTO:
        kind_of(name)
    return name


def _parse_durability(value: object) -> Durability:
    return Durability(one_of(*(choice.value for choice in Durability))(value))


def _parse_policy(value: object) -> Policy:
    return Policy(one_of(*(choice.value for choice in Policy))(value))


def _parse_device_group(value: object) -> tuple[str, str]:
    device, separator, group = parse_text(value).partition("=")
    if not separator or not device or not group:
        raise ValueError(f"expected DEVICE=GROUP, got {value!r}")
    return device, group


def _parse_device_policy(value: object) -> tuple[Policy, tuple[str, ...]]:
    """Return a set of devices and its policy: from text, or from an item of a table."""
    if isinstance(value, tuple):
        policy, devices = value
    else:
        policy, separator, names = parse_text(value).partition("=")
        devices = names.split(",")
        if not separator:
            raise ValueError(f"expected POLICY=DEVICE,DEVICE, got {value!r}")
    if not isinstance(devices, list) or not devices:
        raise ValueError(f"{policy}: expected devices, got {devices!r}")
    for device in devices:
        kind_of(parse_text(device))
    return _parse_policy(policy), tuple(devices)


def _parse_group_field(field: str, value: object) -> float:
    """Return what a field of a group is set to. Raises ``ValueError``."""
    if field == "share":
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"expected a number, got {value!r}")
        return value
    if field.endswith("_bytes"):
        return 0 if value in (0, "0") else parse_size(value)
    return whole_from(-(2**31) if field == "priority" else 0, 2**31 - 1)(value)


@dataclass(frozen=True, slots=True)
class _Option:
    """How a field is spelt outside: ``name`` in a file, ``KAASD_NAME`` in the environment, ``--name`` on the command line."""

    name: str
    metavar: str
    parse_one: Callable[[object], Any]
    many: bool = False
    switch: bool = False
    """Its flag takes no value."""
    separator: str = ","
    """Of several values in one variable: a regular expression."""
    table: bool = False
    """Its values may be a table in a file."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    def parse(self, value: object) -> Any:
        """Return the field's value. Raises ``ValueError``."""
        if not self.many:
            return self.parse_one(value)
        if self.table and isinstance(value, dict):
            value = list(value.items())
        return tuple(self.parse_one(item) for item in (value if isinstance(value, (list, tuple)) else [value]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one daemon."""

    listen: Annotated[tuple[str, ...], _Option("listen", "ADDR", _parse_listener, many=True, separator=r",(?!group=)")]
    """Address to listen on: unix:PATH or HOST:PORT. A unix socket has mode 0600. TCP other than loopback needs --tls-cert and
    --tls-key, or --insecure. With unix:PATH,group=NAME all calls over that socket are for that group, which must be there.
    Default: the unix socket $XDG_RUNTIME_DIR/kaasd.sock, /run/kaasd/kaasd.sock or /tmp/kaasd-UID/kaasd.sock."""
    tls_cert: Annotated[Path | None, _Option("tls_cert", "FILE", parse_path)] = None
    """The certificate of TCP addresses, in PEM, with those that it is signed by behind it. It and its key are read anew whenever
    the files change. Default: none, and TCP is not encrypted."""
    tls_key: Annotated[Path | None, _Option("tls_key", "FILE", parse_path)] = None
    """The private key of --tls-cert, in PEM, unencrypted."""
    tls_client_ca: Annotated[Path | None, _Option("tls_client_ca", "FILE", parse_path)] = None
    """Certificates in PEM; over TCP only clients with a certificate that one of them signed are let in. Default: none, and all
    are."""
    insecure: Annotated[bool, _Option("insecure", "", parse_switch, switch=True)] = False
    """Listen on TCP addresses other than loopback without TLS: whoever reaches them can run kernels, and read what others send.
    Default: off."""
    devices: Annotated[tuple[str, ...], _Option("device", "auto|cuda:N|emulator|emulator:N", _parse_device, many=True)] = (AUTO,)
    """Device to run kernels on. emulator: all emulated devices; emulator:N: one of them. Default auto: every CUDA GPU, or all
    emulated devices where there is none."""
    store: Annotated[Path, _Option("store", "DIR", parse_path)]
    """Directory of the key-value store, an absolute path. Default: $STATE_DIRECTORY, or kaasd below $XDG_STATE_HOME or
    ~/.local/state."""
    store_limit_bytes: Annotated[int, _Option("store_limit", "SIZE", size_from(1 << 20, 64 << 40))] = 64 << 30
    """Most that the store may hold. It takes address space at once, and disk only as it fills. Default 64GiB."""
    durability: Annotated[Durability, _Option("durability", "full|meta|none", _parse_durability)] = Durability.META
    """What a crash of the machine may lose. full: nothing that was answered; meta: the last transaction, which may hold the
    outputs of several requests; none: the last transactions, and the store where the file system reorders writes. Default
    meta."""
    chunk_bytes: Annotated[int, _Option("chunk_size", "SIZE", size_from(4096, 1 << 30))] = 16 << 20
    """Larger values are kept in chunks of this size. Default 16MiB."""
    library_roots: Annotated[tuple[Path, ...], _Option("library_root", "DIR", parse_path, many=True)] = ()
    """Directory, an absolute path, below which requests may name libraries by path. Default: none, so that only uploaded ones can
    be used."""
    allow_host_wrappers: Annotated[bool, _Option("allow_host_wrappers", "", parse_switch, switch=True)] = False
    """Run wrappers: shared objects whose functions launch kernels themselves. They are host code, which can do all that the
    daemon's user can: whoever can connect has that user's rights. Default: off."""
    max_message_bytes: Annotated[int, _Option("max_message_size", "SIZE", size_from(1, 1 << 30))] = 16 << 20
    """Largest gRPC message. Larger values travel through Put and Get. Default 16MiB."""
    max_kernels: Annotated[int, _Option("max_kernels", "N", whole_from(1, MAX_KERNELS))] = MAX_KERNELS
    """Most kernels of a request. Default and most: 10000."""
    max_buffers: Annotated[int, _Option("max_buffers", "N", whole_from(1, MAX_BUFFERS))] = MAX_BUFFERS
    """Most buffers of a request. Default and most: 10000."""
    max_arguments: Annotated[int, _Option("max_arguments", "N", whole_from(1, MAX_ALL_ARGUMENTS))] = MAX_ALL_ARGUMENTS
    """Most arguments of a request's kernels together. Default and most: 100000."""
    max_queue: Annotated[int, _Option("max_queue", "N", parse_count)] = 1024
    """Most requests that wait for one device. Default 1024."""
    max_queued_bytes: Annotated[int, _Option("max_queued_bytes", "SIZE", parse_size)] = 1 << 30
    """Most bytes that requests which wait for one device bring with them as inputs, together. And most bytes of the buffers in
    replies that are to come, or not read yet, which take twice as much memory. Default 1GiB."""
    policy: Annotated[Policy, _Option("policy", "|".join(policy.value for policy in Policy), _parse_policy)] = Policy.AFFINITY
    """How groups share several devices. affinity: any group on any device, where its data are unless waiting there takes longer
    than bringing them elsewhere. balance: the least used device, wherever data are. static: devices belong to groups, by
    device_group. exclusive: each device belongs to one group at a time, and restarts for the next. Default affinity."""
    device_groups: Annotated[
        tuple[tuple[str, str], ...], _Option("device_group", "DEVICE=GROUP", _parse_device_group, many=True)
    ] = ()
    """A device that belongs to a group, for the policy static; may be given several times. Other devices are shared by the groups
    that have none."""
    device_policies: Annotated[
        tuple[tuple[Policy, tuple[str, ...]], ...],
        _Option("device_policy", "POLICY=DEVICE,…", _parse_device_policy, many=True, separator=r",(?=[^,=]*=)", table=True),
    ] = ()
    """Devices that have another policy than the others, as in exclusive=cuda:2,cuda:3; in a file a table [device_policy], as in
    exclusive = ["cuda:2", "cuda:3"]. A group uses all of them, unless static gives it some of its own."""
    spares: Annotated[int | None, _Option("spare", "N", whole_from(0, 1))] = None
    """Spare workers of each device: a process with its device open and the code of recent requests loaded, which takes over at
    once when a worker is lost. On a GPU its context takes some 500 MB of memory. Default: 1 for a GPU of 8 GiB or more, else 0;
    at most 1."""
    max_in_flight: Annotated[int, _Option("max_in_flight", "N", parse_count)] = 64
    """Most invocations of one InvokeStream at a time. Default 64."""
    max_run_s: Annotated[float, _Option("max_run_time", "TIME", parse_duration)] = 600.0
    """Longest that a request may wait and run, and its deadline where the caller gives none. Default 10min."""
    request_id_window_s: Annotated[float, _Option("request_id_window", "TIME", parse_duration)] = 600.0
    """How long the reply to a request with a request_id is kept, so that the same one is answered and not run again. Default
    10min."""
    max_compile_s: Annotated[float, _Option("max_compile_time", "TIME", parse_duration)] = 300.0
    """Longest that a library, or a kernel of it, may take to compile, in a process beside the worker. It goes on so long also
    where its caller has left, and what it makes is kept for the next. For GPUs that is ptxas, where it is installed; what their
    driver compiles is not meant. Default 5min."""
    max_compile_memory_bytes: Annotated[int, _Option("max_compile_memory", "SIZE", size_from(256 << 20, 1 << 50))] = 4 << 30
    """Most memory of that process. Default 4GiB."""
    code_cache: Annotated[Path | None, _Option("code_cache", "DIR", parse_path)] = None
    """Directory, an absolute path, for compiled code that the daemons of one user share: what one has compiled no other does. It
    is made where there is none; of the emulated devices' code there is at most 256MiB. Default: each daemon's store keeps its
    own."""
    drain_timeout_s: Annotated[float, _Option("drain_timeout", "TIME", parse_duration)] = 30.0
    """How long SIGTERM waits for running requests. What still runs 5 s after that is cancelled. Default 30s."""
    concurrency: Annotated[int, _Option("concurrency", "N", parse_count)] = 16
    """Most requests that run on one GPU at a time, each on its own stream. Default 16: on an H100 one caller completed 90
    requests (3000 kernels each) per second, and 16 callers 950."""
    busy_poll_s: Annotated[float, _Option("spin", "TIME", parse_busy_poll)] = 0.001
    """How long after a request the daemon polls for the next one instead of sleeping: to be woken costs each process 20 to 100
    microseconds of every request. From four cores up both do, on two and three a worker that serves one caller alone. 0 saves
    the processor's time instead. Default 1ms."""
    device_memory_bytes: Annotated[int | None, _Option("device_memory", "SIZE", parse_size)] = None
    """Most device memory to take on each device. Default: nine tenths of what it has."""
    emulator_devices: Annotated[int, _Option("emulator_devices", "N", whole_from(1, 1000))] = 1
    """Number of emulated devices, each with a worker and the memory of its own: emulator:0, emulator:1 and so on. A single one
    is called emulator. Default 1."""
    emulator_memory_bytes: Annotated[int, _Option("emulator_memory", "SIZE", parse_size)] = _EMULATOR.memory_bytes
    """Memory of each emulated device, which takes this machine's as it fills. Default 80GiB, as an H100, or all that this machine
    has where that is less."""
    emulator_checks: Annotated[tuple[str, ...], _Option("emulator_check", "races|init", one_of(*EMULATOR_CHECKS), many=True)] = ()
    """What the emulated device looks for beside faults. races: two threads that touch the same byte, one of them writing, with
    nothing between that orders them, also within a warp; init: reads of shared, local or temporary memory that nothing wrote.
    Default: neither."""
    emulator_cores: Annotated[int | None, _Option("emulator_cores", "N", whole_from(1, 1024))] = None
    """Cores of this machine that run the blocks of a launch on each emulated device; with a check or a seed it is one. Default:
    all that kaasd may use."""
    emulator_seed: Annotated[int | None, _Option("emulator_seed", "N", parse_seed)] = None
    """Seed of the random order in which the emulated device runs blocks, warps and their threads. Default: none, the order is
    fixed, and the threads of a warp advance together."""
    emulator_compute_capability: Annotated[
        tuple[int, int], _Option("emulator_compute_capability", "X.Y", _parse_compute_capability)
    ] = _EMULATOR.compute_capability
    """Compute capability of the emulated device. Default 9.0, as an H100."""
    emulator_ptx_version: Annotated[tuple[int, int], _Option("emulator_ptx_version", "X.Y", _parse_ptx_version)] = (
        _EMULATOR.ptx_version
    )
    """The newest PTX that the emulated device takes. Default 9.5, that of CUDA 13.5."""
    emulator_multiprocessors: Annotated[int, _Option("emulator_multiprocessors", "N", parse_count)] = _EMULATOR.multiprocessors
    """Multiprocessors of the emulated device: as many blocks are under way at a time as fit on them. Default 132, as an H100."""
    emulator_shared_memory_bytes: Annotated[int, _Option("emulator_shared_memory", "SIZE", size_from(1, 1 << 30))] = (
        _EMULATOR.shared_memory_bytes
    )
    """Most shared memory of a block of the emulated device. Default 227KiB, as an H100."""
    groups: tuple[grants.Grant, ...] = ()
    """Only in a file: a table ``[groups.NAME]`` for each, with the fields of ``kaas.v1.Group``. They cannot be set otherwise."""
    log_level: Annotated[str, _Option("log_level", "LEVEL", one_of("DEBUG", "INFO", "WARNING", "ERROR"))] = "INFO"
    """How much is logged, to standard error: DEBUG, INFO, WARNING or ERROR. Default INFO."""


def _options() -> dict[str, tuple[str, _Option]]:
    """Return each setting's field and option, by its name outside."""
    hints = get_type_hints(Settings, include_extras=True)
    options = ((field, hint.__metadata__[0]) for field, hint in hints.items() if field != _GROUPS)
    return {option.name: (field, option) for field, option in options}


def load_settings(flags: Mapping[str, object], config: str | None, environ: Mapping[str, str]) -> Settings:
    """Return the settings from ``flags``, the environment, and the TOML file ``config`` (or ``KAASD_CONFIG``).

    ``flags`` and the file use the names of ``--help``; the file may put them below a table ``[kaasd]``. A variable holds several
    values separated by commas. Raises ``SettingsError``.
    """
    options = _options()
    config = config or environ.get(f"{VARIABLE_PREFIX}CONFIG")
    chosen: dict[str, object] = {"listen": (default_listen_address(environ),), "store": _default_store(environ)}
    file_values = list(_file_values(config)) if config else []
    chosen[_GROUPS] = tuple(_groups([value for value in file_values if value[1] == _GROUPS]))
    sources = [*(value for value in file_values if value[1] != _GROUPS), *_environment_values(environ, options)]
    sources += [(options[name][1].flag, name, value) for name, value in flags.items()]
    for origin, name, value in sources:
        if name not in options:
            raise SettingsError(f"{origin}: there is no such setting; see kaasd --help")
        field, option = options[name]
        try:
            chosen[field] = option.parse(value)
        except ValueError as error:
            raise SettingsError(f"{origin}: {error}") from None
    settings = Settings(**chosen)  # type: ignore[arg-type]
    if AUTO in settings.devices and len(settings.devices) > 1:
        raise SettingsError("--device: auto already means every device, so it cannot be given with others")
    _check_tls(settings)
    named = Counter(device for _, devices in settings.device_policies for device in devices)
    for device, times in named.items():
        if times > 1:
            raise SettingsError(f"--device-policy: {device} is named {times} times; a device has one policy")
    return settings


def _check_tls(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise SettingsError("--tls-cert and --tls-key: a certificate and its key are given together")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise SettingsError("--tls-client-ca: it needs --tls-cert and --tls-key")
    for address, _ in map(split_listener, settings.listen):
        if settings.tls_cert is None and not settings.insecure and not is_loopback(address):
            raise SettingsError(
                f"--listen: whoever reaches {address} could run kernels, and read what others send: give --tls-cert and "
                "--tls-key, or --insecure if that is wanted"
            )


def parse_command_line(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of a command line (without the program's name).

    ``--help`` and ``--version`` print and raise ``SystemExit`` 0; a bad setting, wherever it stands, prints and raises 2.
    """
    chosen: list[Settings] = []

    def kaasd(config: str | None, version: bool, **flags: object) -> None:
        """Kernel-as-a-Service: run requests of GPU kernels for clients that speak gRPC."""
        if version:
            typer.echo(f"kaasd {__version__}")
            return
        try:
            chosen.append(load_settings({k: v for k, v in flags.items() if v not in (None, [], False)}, config, environ))
        except SettingsError as error:
            raise typer.BadParameter(str(error)) from None

    kaasd.__signature__ = inspect.Signature(list(_parameters()))  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(kaasd)
    try:
        typer.main.get_command(app).main(list(arguments), prog_name="kaasd")
    except SystemExit:
        if not chosen:
            raise
    return chosen[0]


def _parameters() -> Iterator[inspect.Parameter]:
    """Yield the command line's options, from the table."""
    manual = _manual()
    for name, (attribute, option) in _options().items():
        text = manual[attribute] + (" May be given several times." if option.many else "")
        kind = bool if option.switch else list[str] | None if option.many else str | None
        default = False if option.switch else None
        yield _parameter(name, kind, default, typer.Option(option.flag, metavar=option.metavar, help=text))
    text = "File of settings, by the names of these options with underscores."
    yield _parameter("config", str | None, None, typer.Option("--config", metavar="FILE.toml", help=text))
    yield _parameter("version", bool, False, typer.Option("--version", help="Print the version and exit."))


def _parameter(name: str, kind: Any, default: object, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _manual() -> dict[str, str]:
    """Return the text below each field of ``Settings``, which Python itself does not keep."""
    body = ast.parse(textwrap.dedent(inspect.getsource(Settings))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        statement.target.id: " ".join(text.value.value.split())
        for statement, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _file_values(path: str) -> Iterator[tuple[str, str, object]]:
    """Yield origin, name and value of every setting in a TOML file."""
    try:
        with Path(path).open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a TOML file: {error}") from None
    below = document.pop("kaasd", {})
    if not isinstance(below, dict):
        raise SettingsError(f"{path}: kaasd: must be a table of settings")
    for name, value in [*document.items(), *below.items()]:
        yield f"{path}: {name}", name, value


def _groups(tables: Sequence[tuple[str, str, object]]) -> Iterator[grants.Grant]:
    """Yield what the tables of groups grant. Raises ``SettingsError`` naming the field."""
    for origin, _, table in tables:
        if not isinstance(table, dict) or not all(isinstance(fields, dict) for fields in table.values()):
            raise SettingsError(f"{origin}: must be tables: [groups.NAME]")
        for name, fields in table.items():
            path = f"{origin}.{name}"
            message = admin_pb2.Group()
            for field, value in fields.items():
                if field == "name" or field not in message.DESCRIPTOR.fields_by_name:
                    raise SettingsError(f"{path}.{field}: a group has no such setting")
                try:
                    setattr(message, field, _parse_group_field(field, value))
                except ValueError as error:
                    raise SettingsError(f"{path}.{field}: {error}") from None
            message.name = name
            try:
                yield grants.check(message, path=path, fixed=True)
            except InvalidRequestError as error:
                raise SettingsError(str(error)) from None


def _environment_values(
    environ: Mapping[str, str], options: Mapping[str, tuple[str, _Option]]
) -> Iterator[tuple[str, str, str | list[str]]]:
    """Yield origin, name and value of every setting in the environment."""
    for variable, value in sorted(environ.items()):
        name = variable.removeprefix(VARIABLE_PREFIX).lower()
        if variable.startswith(VARIABLE_PREFIX) and name != "config":
            many = name in options and options[name][1].many
            yield variable, name, [part.strip() for part in re.split(options[name][1].separator, value)] if many else value


def _default_store(environ: Mapping[str, str]) -> Path:
    """Return the store's directory where nothing names it; systemd may list several state directories."""
    if environ.get("STATE_DIRECTORY"):
        return Path(environ["STATE_DIRECTORY"].split(":")[0])
    state = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local" / "state")
    return Path(state) / "kaasd"
