"""The packages keep their shape: imports only go down, libraries stay where they belong, and the tables of reasons agree."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from kaas_core.errors import BY_REASON

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for package in ("kaasd", "kaas_core", "kaas_client") for path in (ROOT / package).rglob("*.py"))
HAND_WRITTEN = sorted(
    [*SOURCES, *(path for folder in ("tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))]
)

BELOW = {
    "kaas_core": set(),
    "kaasd.request": {"kaas_core"},
    "kaasd.scheduling": {"kaas_core"},
    "kaasd.libraries": {"kaas_core", "kaasd.store"},
    "kaasd.store": {"kaas_core"},
    "kaasd.ipc": {"kaas_core"},
    "kaasd.devices": {"kaas_core", "kaasd.process", "kaasd.request", "kaasd.libraries"},
    "kaasd.devices.emulator.ptx": {"kaasd.libraries"},
    "kaasd.devices.emulator.codegen": {"kaasd.devices.emulator.ptx", "kaasd.devices.emulator.options"},
    "kaasd.devices.emulator.isa": {"kaasd.devices.emulator.ptx", "kaasd.devices.emulator.codegen"},
    "kaasd.devices.emulator.translation": {
        "kaas_core",
        "kaasd.libraries",
        "kaasd.devices.emulator.ptx",
        "kaasd.devices.emulator.codegen",
        "kaasd.devices.emulator.isa",
    },
    "kaasd.devices.emulator.runtime": {
        "kaas_core",
        "kaasd.request",
        "kaasd.libraries",
        "kaasd.devices.base",
        "kaasd.devices.code_directory",
        "kaasd.devices.trace",
        "kaasd.devices.emulator.ptx",
        "kaasd.devices.emulator.codegen",
        "kaasd.devices.emulator.translation",
        "kaasd.devices.emulator.options",
    },
    "kaasd.compiler": {"kaas_core", "kaasd.process", "kaasd.store", "kaasd.ipc", "kaasd.libraries", "kaasd.devices"},
    "kaasd.worker": {
        "kaas_core",
        "kaasd.compiler",
        "kaasd.process",
        "kaasd.request",
        "kaasd.store",
        "kaasd.ipc",
        "kaasd.libraries",
        "kaasd.devices",
    },
    "kaasd.front": {"kaas_core", "kaasd.store", "kaasd.ipc", "kaasd.request", "kaasd.scheduling"},
    "kaasd.api": {
        "kaas_core",
        "kaasd.config",
        "kaasd.store",
        "kaasd.libraries",
        "kaasd.front",
    },
    "kaas_client": {"kaas_core"},
    "kaas_client.ray": {
        "kaas_core",
        "kaas_client.builders",
        "kaasd.devices",
        "kaasd.ipc",
        "kaasd.libraries",
        "kaasd.request",
        "kaasd.scheduling",
        "kaasd.store",
        "kaasd.worker",
    },
}
"""What each package may import of the others. Each entry is used."""

OWN_RULES = {"kaas_client": "kaas_client.ray"}
"""Packages within others that may import more than these: on Ray the client's process is not all that its code runs in."""

PACKAGES_OF = {
    "grpc": ("kaasd.api", "kaas_client"),
    "lmdb": ("kaasd.store",),
    "cuda": ("kaasd.devices.cuda", "kaas_client.kernels", "kaas_client._cuda_arrays"),
    "llvmlite": ("kaasd.devices.emulator", "kaas_client.kernels"),
    "ray": ("kaas_client.ray",),
}
"""The only packages that may import these libraries."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of what a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("package", BELOW)
def test_imports_only_go_down(package: str) -> None:
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in SOURCES
        if within(module_name(path), package) and not within(module_name(path), OWN_RULES.get(package, "none"))
        for name in imports(path)
        if name.split(".")[0] in ("kaasd", "kaas_core", "kaas_client")
        if not any(within(name, allowed) for allowed in {package, *BELOW[package]})
    ]
    assert wrong == []


@pytest.mark.parametrize("package", BELOW)
def test_each_permission_is_used(package: str) -> None:
    names = [name for path in SOURCES if within(module_name(path), package) for name in imports(path)]
    assert [allowed for allowed in sorted(BELOW[package]) if not any(within(name, allowed) for name in names)] == []


def test_no_imports_go_in_a_circle() -> None:
    """All imports of a file count, those for types and those inside functions too."""
    modules = {module_name(path): path for path in SOURCES}

    def module_of(name: str) -> str | None:
        return next((module for module in (name, name.rpartition(".")[0]) if module in modules), None)

    graph = {module: {module_of(name) for name in imports(path)} - {module, None} for module, path in modules.items()}
    circle: list[str] = []
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert circle == [], "each is imported by the next"


@pytest.mark.parametrize("library", PACKAGES_OF)
def test_a_library_has_its_packages(library: str) -> None:
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in SOURCES
        for name in imports(path)
        if within(name, library)
        if not any(within(module_name(path), package) for package in PACKAGES_OF[library])
    ]
    assert wrong == []


def test_scheduling_needs_no_library() -> None:
    names = {name.split(".")[0] for path in SOURCES if within(module_name(path), "kaasd.scheduling") for name in imports(path)}
    assert names - sys.stdlib_module_names == {"kaasd", "kaas_core"}


def test_the_daemon_does_not_import_the_client() -> None:
    wrong = [
        module_name(p) for p in SOURCES if within(module_name(p), "kaasd") if any(within(n, "kaas_client") for n in imports(p))
    ]
    assert wrong == []


TELLS_THE_TIME = {
    "kaasd.api.core": "when a server started",
    "kaasd.front.functions": "when a function was registered",
    "kaasd.front.quarantine": "when a request last cost a worker",
    "kaasd.libraries.registry": "when a library was uploaded, and whether a file is older than a tick of its stamps",
    "kaasd.store.backup": "the stamp of a file in an archive",
    "kaasd.store.write_transaction": "when a value was stored",
}
"""What asks for the time of day, and for what: nothing here waits by it, so that a clock that jumps does no harm."""


def test_nothing_waits_by_the_time_of_day() -> None:
    asks = {
        module_name(path)
        for path in SOURCES
        if within(module_name(path), "kaasd")
        for node in ast.walk(ast.parse(path.read_text()))
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node) in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow")
        )
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "time"
            and {name.name for name in node.names} & {"time", "time_ns"}
        )
    }
    assert asks == TELLS_THE_TIME.keys()


def test_files_are_small() -> None:
    assert [f"{path}: {lines} lines" for path in HAND_WRITTEN if (lines := len(path.read_text().splitlines())) > 500] == []


def test_the_tables_of_reasons_agree() -> None:
    """Every reason on the wire has an exception whose status code is the one that errors.proto promises, and no other exists."""
    text = (ROOT / "proto/kaas/v1/errors.proto").read_text()
    promised = {reason: code for code, reason in re.findall(r"  // ([A-Z_]+)\b.*\n(?:  //.*\n)*  REASON_(\w+) = [1-9]", text)}
    assert {reason: kind.code for reason, kind in BY_REASON.items()} == promised
