"""Which PTX a device of some compute capability takes, as a GPU's driver would."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kaasd.libraries import UnsupportedLibrary

_TARGET = re.compile(r"sm_(\d+)(\d)([af]?)")


def check_targets(targets: Iterable[str], capability: tuple[int, int]) -> None:
    """Raise ``UnsupportedLibrary`` if PTX for one of ``targets`` does not run on a device.

    PTX runs on its own architecture and all later ones; that of ``sm_90a`` and its like on its own only, that of ``sm_100f`` and
    its like also on later ones of the same major version. Targets that name no architecture, such as ``debug``, do not count.
    """
    for target in targets:
        if not (match := _TARGET.fullmatch(target)):
            continue
        own = int(match[1]), int(match[2])
        alike = {"": True, "a": own == capability, "f": own[0] == capability[0]}[match[3]]
        if not alike or own > capability:
            name = "{}.{}".format(*own)
            where = {"": f"{name} or later", "a": f"{name} alone", "f": f"{name} or a later {own[0]}.x"}[match[3]]
            raise UnsupportedLibrary(
                f"PTX is for {target}, the device is sm_{capability[0]}{capability[1]}: it needs compute capability {where}; "
                f"compile it for another, or start kaasd with --emulator-compute-capability {name}"
            )
