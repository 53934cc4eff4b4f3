"""The kinds of device that there are, and devices by name: a new kind is a package and an entry in ``KINDS``.

A kind from another package is an entry point of the group ``kaasd.devices``, a ``DeviceKind``.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from kaasd.devices.base import Device, DeviceKind, DeviceUnavailable, Found
from kaasd.devices.cuda import kind as cuda
from kaasd.devices.emulator import kind as emulator

AUTO = "auto"
KINDS: tuple[DeviceKind, ...] = (cuda.KIND, emulator.KIND)
"""In the order in which ``auto`` looks for devices: it stands for all of the first kind that has any."""
MANY_RUNS = 32
"""At once, where nobody says how many there will be."""
ENTRY_POINTS = "kaasd.devices"

_log = logging.getLogger(__name__)


def kind_of(name: str) -> DeviceKind:
    """Return the kind of a device's name, which need not be on this machine. Raises ``ValueError`` where there is none."""
    for kind in KINDS:
        if re.fullmatch(kind.pattern, name, re.ASCII):
            return kind
    others = _others()
    for kind in others:
        if re.fullmatch(kind.pattern, name, re.ASCII):
            return kind
    *examples, last = (AUTO, *(kind.example for kind in (*others, *reversed(KINDS))))
    raise ValueError(f"there is no device '{name}': a device is {', '.join(examples)}, or {last}")


def kind_named(name: str) -> DeviceKind:
    """Return the kind of this name. Raises ``ValueError`` where there is none."""
    for kinds in (lambda: KINDS, _others):
        for kind in kinds():
            if kind.name == name:
                return kind
    raise ValueError(f"there is no kind of device '{name}'")


def _others() -> list[DeviceKind]:
    """Return the kinds of other packages. This reads the metadata of every package that is installed."""
    from importlib import metadata

    return [point.load() for point in metadata.entry_points(group=ENTRY_POINTS)]


def available(names: Sequence[str], emulator_count: int = 1) -> list[str]:
    """Return the devices that ``names`` stand for, in order, each once, and log what was found.

    ``auto`` stands for every CUDA GPU, or for the emulated devices where there is none; the name of a kind alone for all of it.
    Nothing is looked for unless a name needs it. Raises ``ValueError`` for what is not a device's name, ``DeviceUnavailable`` for
    a device that is named and not there.
    """
    kinds = {name: kind_of(name) for name in names if name != AUTO}
    found = cache(lambda kind: kind.find(emulator_count))
    devices = {name: _named(name, kind, found(kind)) for name, kind in kinds.items()}
    if AUTO in names:
        devices[AUTO] = _automatic(found)
    return list(dict.fromkeys(device for name in names for device in devices[name]))


def options_to_text(name: str, settings: object) -> str:
    """Return the settings of a device's kind as JSON, to be given to another process.

    They are the attributes of ``settings`` whose names begin with the kind's. Raises ``ValueError`` for a name that is none,
    ``DeviceUnavailable`` where ``settings`` lacks one.
    """
    kind = kind_of(name)
    values = {}
    for each in [field.name for field in fields(kind.options)] if kind.options else []:
        setting = f"{kind.name}_{each}"
        if not hasattr(settings, setting):
            raise DeviceUnavailable(f"{name} cannot be used: kaasd has no setting {setting} for its option {each!r}")
        values[each] = getattr(settings, setting)
    return json.dumps(values)


def options_from_text(name: str, text: str) -> Any:
    """Return what ``options_to_text`` wrote, in the form that ``open_device`` takes. Raises ``ValueError``."""
    kind = kind_of(name)
    values = {each: tuple(value) if isinstance(value, list) else value for each, value in json.loads(text).items()}
    return kind.options(**values) if kind.options else None


def open_device(name: str, options: Any = None, code_cache: Path | None = None, runs: int = MANY_RUNS) -> Device:
    """Open a device; the thread that opens it is the one that uses it.

    ``options`` is of the kind's class, None for its defaults. In ``code_cache``, a directory, a device keeps what it compiles for
    the next process. It is made for about so many ``runs`` at once. Raises ``ValueError`` for a name that is none,
    ``DeviceUnavailable``.
    """
    return kind_of(name).open(name, options, code_cache, runs)


def _named(name: str, kind: DeviceKind, found: Found) -> list[str]:
    if name == kind.name and found.names:
        return found.names
    if name not in found.names:
        raise DeviceUnavailable(f"there is no {name}: {found.note or 'there is only ' + ', '.join(found.names)}")
    return [name]


def _automatic(found: Any) -> list[str]:
    notes: list[str] = []
    for kind in KINDS:
        names, note = found(kind)
        if note:
            notes.append(note)
        if names:
            _log.info("Device auto: using %s; %s", ", ".join(names), "; ".join(notes))
            return list(names)
    raise DeviceUnavailable("; ".join(notes))
