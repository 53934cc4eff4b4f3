"""The settings: where they come from, and what a bad one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaas.v1 import admin_pb2
from kaasd.config import (
    Settings,
    SettingsError,
    load_settings,
    parse_command_line,
    split_listener,
)
from kaasd.scheduling import Policy
from kaasd.setting_values import parse_duration, parse_size
from kaasd.store.base import Durability

ENVIRON = {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/home/u/.local/state"}


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), (4096, 4096), ("1KiB", 1024), ("64GiB", 68719476736), ("1.5 MiB", 1572864), ("2MB", 2000000), ("7B", 7)],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1XB", "1 2", "0", 0, True, None, float("nan"), float("inf"), "٣MiB"])
def test_bad_sizes(text: object) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@pytest.mark.parametrize(("text", "seconds"), [("30", 30.0), ("500ms", 0.5), ("10min", 600.0), ("1h", 3600.0), (2.5, 2.5)])
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), (0, 0.0), ("2ms", 0.002)])
def test_the_busy_poll_may_be_off(text: object, seconds: float) -> None:
    assert load_settings({"spin": text}, None, ENVIRON).busy_poll_s == seconds


def test_defaults() -> None:
    settings = load_settings({}, None, ENVIRON)
    assert settings.listen == ("unix:/run/user/7/kaasd.sock",)
    assert settings.store == Path("/home/u/.local/state/kaasd")
    assert settings.devices == ("auto",)
    assert settings.durability is Durability.META
    assert settings.library_roots == ()
    assert settings.store_limit_bytes == 64 * 1024**3
    assert settings.concurrency == 16
    assert settings.device_memory_bytes is None
    assert settings.emulator_devices == 1
    assert settings.busy_poll_s == 0.001


@pytest.mark.parametrize(
    ("environ", "store"),
    [
        ({"STATE_DIRECTORY": "/var/lib/kaasd:/var/lib/other", "XDG_STATE_HOME": "/x"}, "/var/lib/kaasd"),
        ({"HOME": "/home/u"}, "/home/u/.local/state/kaasd"),
    ],
)
def test_default_store(environ: dict[str, str], store: str) -> None:
    assert load_settings({}, None, environ).store == Path(store)


@pytest.mark.parametrize("head", ["", "[kaasd]\n"], ids=["top level", "table"])
def test_each_source_overrides_the_one_before(tmp_path: Path, head: str) -> None:
    file = tmp_path / "kaasd.toml"
    file.write_text(f'{head}max_queue = 1\nmax_in_flight = 1\nlog_level = "ERROR"\nlibrary_root = ["/a", "/b"]\n')
    environ = {**ENVIRON, "KAASD_CONFIG": str(file), "KAASD_MAX_IN_FLIGHT": "2", "KAASD_LOG_LEVEL": "INFO"}
    settings = parse_command_line(["--log-level", "DEBUG"], environ)
    assert (settings.max_queue, settings.max_in_flight, settings.log_level) == (1, 2, "DEBUG")
    assert settings.library_roots == (Path("/a"), Path("/b"))


def test_lists_from_flags_and_environment() -> None:
    environ = {**ENVIRON, "KAASD_DEVICE": "cuda:0, cuda:1"}
    settings = parse_command_line(["--listen", "/a.sock", "--listen", "127.0.0.1:7000"], environ)
    assert settings.listen == ("unix:/a.sock", "127.0.0.1:7000")
    assert settings.devices == ("cuda:0", "cuda:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense = 1", r"kaasd.toml: nonsense: there is no such setting"),
        ('store_limit = "64 apples"', r"kaasd.toml: store_limit: expected a size .*'64 apples'"),
        ('durability = "some"', r"kaasd.toml: durability: expected full or meta or none"),
        ('device = "gpu"', r"kaasd.toml: device: there is no device 'gpu'"),
        ('device = ["auto", "emulator"]', r"device: auto already means every device"),
        ('listen = "nowhere"', r"kaasd.toml: listen: 'nowhere' is not a valid address"),
        ('library_root = "relative/path"', r"kaasd.toml: library_root: expected an absolute path"),
        ("max_queue = 0", r"kaasd.toml: max_queue: expected a whole number of at least 1, got 0"),
        ("max_queue = true", r"kaasd.toml: max_queue: expected a whole number"),
        ("max_queue = 2147483648", r"kaasd.toml: max_queue: must be at most 2147483647"),
        ("emulator_devices = 1001", r"kaasd.toml: emulator_devices: must be at most 1000"),
        ('device = ""', r"kaasd.toml: device: expected text"),
        ('store_limit = "8388608TiB"', r"kaasd.toml: store_limit: must be less than 8388608TiB"),
        ('store_limit = "65TiB"', r"kaasd.toml: store_limit: must be at most 70368744177664 bytes"),
        ("store_limit = 1048575", r"kaasd.toml: store_limit: must be at least 1048576 bytes"),
        ("chunk_size = 4095", r"kaasd.toml: chunk_size: must be at least 4096 bytes"),
        ('max_run_time = "0s"', r"kaasd.toml: max_run_time: must be above 0"),
        ('max_compile_time = "0s"', r"kaasd.toml: max_compile_time: must be above 0"),
        ('max_compile_memory = "255MiB"', r"kaasd.toml: max_compile_memory: must be at least 268435456 bytes"),
        ('spin = "-1s"', r"kaasd.toml: spin: expected a time"),
        ('max_message_size = "3GiB"', r"kaasd.toml: max_message_size: must be at most"),
        ('emulator_check = "speed"', r"kaasd.toml: emulator_check: expected races or init"),
        ('allow_host_wrappers = "perhaps"', r"kaasd.toml: allow_host_wrappers: expected true or false"),
        ("emulator_seed = -1", r"kaasd.toml: emulator_seed: expected a whole number"),
        ('emulator_compute_capability = "nine"', r"kaasd.toml: emulator_compute_capability: expected a compute capability"),
        ("emulator_ptx_version = 9", r"kaasd.toml: emulator_ptx_version: expected a version of PTX such as 9.0"),
        ("kaasd = 3", r"kaasd.toml: kaasd: must be a table"),
        ("groups = 3", r"kaasd.toml: groups: must be tables: \[groups.NAME\]"),
        ("[groups]\nshare = 1", r"kaasd.toml: groups: must be tables"),
        ("[groups.a]\ncolour = 1", r"kaasd.toml: groups.a.colour: a group has no such setting"),
        ('[groups.a]\nname = "b"', r"kaasd.toml: groups.a.name: a group has no such setting"),
        ('[groups."a b"]', r"kaasd.toml: groups.a b.name: group 'a b': a name has 1 to 64"),
        ("[groups.a]\nshare = -1", r"kaasd.toml: groups.a.share: share is -1.0; it must be a number above 0"),
        ('[groups.a]\nshare = "2"', r"kaasd.toml: groups.a.share: expected a number, got '2'"),
        ("[groups.a]\nmax_running = -1", r"kaasd.toml: groups.a.max_running: expected a whole number of at least 0"),
        ("[groups.a]\nmax_running = true", r"kaasd.toml: groups.a.max_running: expected a whole number"),
        ('[groups.a]\nmax_stored_bytes = "big"', r"kaasd.toml: groups.a.max_stored_bytes: expected a size"),
        ('listen = "/a.sock,group="', r"kaasd.toml: listen: '/a.sock,group=': expected unix:PATH,group=NAME"),
        ('listen = "127.0.0.1:0,group=a"', r"kaasd.toml: listen: '127.0.0.1:0,group=a': only a unix socket can be for one"),
        ("= 3", r"kaasd.toml: not a TOML file"),
    ],
)
def test_a_bad_file_names_itself_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "kaasd.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings({}, str(file), ENVIRON)


def test_host_wrappers_are_allowed_by_a_switch(tmp_path: Path) -> None:
    file = tmp_path / "kaasd.toml"
    file.write_text("allow_host_wrappers = true\n")
    variable = {**ENVIRON, "KAASD_ALLOW_HOST_WRAPPERS": "true"}
    assert parse_command_line([], ENVIRON).allow_host_wrappers is False
    assert parse_command_line(["--allow-host-wrappers"], ENVIRON).allow_host_wrappers is True
    assert parse_command_line(["--allow-host-wrappers", "--max-queue", "3"], ENVIRON).max_queue == 3
    assert parse_command_line([], variable).allow_host_wrappers is True
    assert parse_command_line(["--config", str(file)], ENVIRON).allow_host_wrappers is True
    off = {**ENVIRON, "KAASD_ALLOW_HOST_WRAPPERS": "false"}
    assert parse_command_line(["--config", str(file)], off).allow_host_wrappers is False


def test_the_emulated_device() -> None:
    arguments = ["--emulator-check", "races", "--emulator-check", "init", "--emulator-seed", "0"]
    arguments += ["--emulator-compute-capability", "8.6", "--emulator-multiprocessors", "84", "--emulator-shared-memory", "99KiB"]
    arguments += ["--emulator-ptx-version", "8.7", "--emulator-cores", "3"]
    arguments += ["--emulator-devices", "2", "--device", "emulator:1", "--device", "emulator:0"]
    settings = parse_command_line(arguments, ENVIRON)
    assert (settings.emulator_devices, settings.devices) == (2, ("emulator:1", "emulator:0"))
    assert (settings.emulator_checks, settings.emulator_seed) == (("races", "init"), 0)
    assert (settings.emulator_compute_capability, settings.emulator_multiprocessors) == ((8, 6), 84)
    assert (settings.emulator_shared_memory_bytes, settings.emulator_ptx_version) == (99 * 1024, (8, 7))
    assert settings.emulator_cores == 3
    defaults = load_settings({}, None, ENVIRON)
    assert defaults.emulator_cores is None
    assert (defaults.emulator_checks, defaults.emulator_seed, defaults.emulator_compute_capability) == ((), None, (9, 0))


@pytest.mark.parametrize("head", ["", "kaasd."], ids=["top level", "table"])
def test_groups(tmp_path: Path, head: str) -> None:
    file = tmp_path / "kaasd.toml"
    file.write_text(f"""
        [{head}groups.research]
        share = 2
        priority = -1
        max_running = 3
        max_stored_bytes = "10GiB"
        max_queued_bytes = 0
        [{head}groups.default]
        share = 0.5
    """)
    research, default = load_settings({}, str(file), ENVIRON).groups
    assert research.fixed
    assert research.message == admin_pb2.Group(
        name="research", share=2, priority=-1, max_running=3, max_stored_bytes=10 << 30, max_region_bytes=4 << 30
    )
    assert (default.name, default.message.share) == ("default", 0.5)
    assert load_settings({}, None, ENVIRON).groups == ()


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("/a.sock,group=x", ("unix:/a.sock", "x")),
        ("unix:/a.sock,group=a.b-c_d", ("unix:/a.sock", "a.b-c_d")),
        ("/a,b.sock", ("unix:/a,b.sock", "")),
        ("127.0.0.1:7000", ("127.0.0.1:7000", "")),
    ],
)
def test_a_socket_may_be_for_one_group(tmp_path: Path, listen: str, expected: tuple[str, str]) -> None:
    file = tmp_path / "kaasd.toml"
    file.write_text(f'listen = ["{listen}"]')
    for settings in (load_settings({"listen": [listen]}, None, ENVIRON), load_settings({}, str(file), ENVIRON)):
        assert [split_listener(text) for text in settings.listen] == [expected]


def test_sockets_of_groups_from_the_environment() -> None:
    settings = load_settings({}, None, {**ENVIRON, "KAASD_LISTEN": "/a.sock,group=x, /b.sock,/c.sock,group=y"})
    assert settings.listen == ("unix:/a.sock,group=x", "unix:/b.sock", "unix:/c.sock,group=y")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent.toml: No such file"):
        load_settings({}, str(tmp_path / "absent.toml"), ENVIRON)


def test_a_bad_variable_names_itself() -> None:
    with pytest.raises(SettingsError, match="KAASD_MAX_QUEUE: expected a whole number"):
        load_settings({}, None, {**ENVIRON, "KAASD_MAX_QUEUE": "many"})
    with pytest.raises(SettingsError, match="KAASD_COLOUR: there is no such setting"):
        load_settings({}, None, {**ENVIRON, "KAASD_COLOUR": "red"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-queue", "many"], "--max-queue: expected"),
        (["--listen", ""], "--listen"),
        (["--colour"], "--colour"),
        (["x"], "x"),
    ],
)
def test_a_usage_error_exits_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse_command_line(arguments, ENVIRON)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_help_is_the_manual(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as raised:
        parse_command_line(["--help"], ENVIRON)
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("--listen", "--device", "--store", "--library-root", "--config", "--max-message-size", "--version"):
        assert flag in text
    assert "Default: none, so that only uploaded ones can be used." in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse_command_line(["--version"], ENVIRON)
    assert raised.value.code == 0
    assert capsys.readouterr().out.startswith("kaasd ")


def test_settings_can_be_built_in_code(tmp_path: Path) -> None:
    assert Settings(listen=("unix:/a",), store=tmp_path).chunk_bytes == 16 * 1024**2


def test_policies_of_sets_of_devices_are_the_same_wherever_they_come_from(tmp_path: Path) -> None:
    wanted = ((Policy.EXCLUSIVE, ("cuda:2", "cuda:3")), (Policy.BALANCE, ("cuda:0",)))
    texts = ["exclusive=cuda:2,cuda:3", "balance=cuda:0"]
    table, listed = tmp_path / "table.toml", tmp_path / "listed.toml"
    table.write_text('[kaasd.device_policy]\nexclusive = ["cuda:2", "cuda:3"]\nbalance = ["cuda:0"]\n')
    listed.write_text(f"device_policy = {texts}\n")
    variable = {**ENVIRON, "KAASD_DEVICE_POLICY": ",".join(texts)}
    found = [
        load_settings({"device_policy": texts}, None, ENVIRON),
        load_settings({}, None, variable),
        load_settings({}, str(table), ENVIRON),
        load_settings({}, str(listed), ENVIRON),
        parse_command_line([part for text in texts for part in ("--device-policy", text)], ENVIRON),
    ]
    assert [settings.device_policies for settings in found] == [wanted] * 5


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ('exclusive = ["cuda:0"]\nbalance = ["cuda:1", "cuda:0"]', "--device-policy: cuda:0 is named 2 times"),
        ('exclusive = ["cuda:0", "cuda:0"]', "--device-policy: cuda:0 is named 2 times"),
        ('fair = ["cuda:0"]', "device_policy: expected balance or affinity or static or exclusive, got 'fair'"),
        ("exclusive = []", "device_policy: exclusive: expected devices"),
        ('exclusive = "cuda:0"', "device_policy: exclusive: expected devices"),
        ("exclusive = [0]", "device_policy: expected text, got 0"),
        ('exclusive = ["gpu:0"]', "device_policy: .*gpu:0"),
    ],
)
def test_policies_of_sets_that_cannot_be(file: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "kaasd.toml"
    path.write_text(f"[device_policy]\n{file}\n")
    with pytest.raises(SettingsError, match=words):
        load_settings({}, str(path), ENVIRON)


@pytest.mark.parametrize("text", ["exclusive", "=cuda:0", "exclusive=", "exclusive=cuda:0,"])
def test_policies_of_sets_that_no_flag_can_say(text: str) -> None:
    with pytest.raises(SettingsError, match="--device-policy: "):
        load_settings({"device_policy": [text]}, None, ENVIRON)


@pytest.mark.parametrize("address", ["0.0.0.0:8470", "[::]:8470", "gpu.example.org:8470", "10.0.0.7:0"])
def test_an_address_that_others_reach_needs_tls(address: str) -> None:
    with pytest.raises(SettingsError, match=r"--listen: whoever reaches .* give --tls-cert and --tls-key, or --insecure"):
        load_settings({"listen": [address]}, None, ENVIRON)
    assert load_settings({"listen": [address], "insecure": True}, None, ENVIRON).insecure
    with_tls = load_settings({"listen": [address], "tls_cert": "/c.pem", "tls_key": "/k.pem"}, None, ENVIRON)
    assert (with_tls.tls_cert, with_tls.tls_key) == (Path("/c.pem"), Path("/k.pem"))


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "/run/x.sock"])
def test_this_machine_alone_needs_none(address: str) -> None:
    assert load_settings({"listen": [address]}, None, ENVIRON).tls_cert is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tls_cert": "/c.pem"}, "--tls-cert and --tls-key: a certificate and its key are given together"),
        ({"tls_key": "/k.pem"}, "--tls-cert and --tls-key: a certificate and its key are given together"),
        ({"tls_client_ca": "/ca.pem"}, "--tls-client-ca: it needs --tls-cert and --tls-key"),
        ({"tls_cert": "c.pem", "tls_key": "/k.pem"}, "--tls-cert: expected an absolute path, got 'c.pem'"),
    ],
)
def test_files_of_tls_go_together(flags: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_settings(flags, None, ENVIRON)
