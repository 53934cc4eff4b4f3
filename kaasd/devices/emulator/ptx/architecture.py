"""Which PTX a device takes, by its version and its target, as a GPU's driver would."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kaasd.libraries import UnsupportedLibrary

NEWEST_PTX = (9, 5)
"""Of CUDA 13.5. A later version may give an instruction a meaning that is not known here."""
_TARGET = re.compile(r"sm_(\d+)(\d)([af]?)")


@dataclass(frozen=True, slots=True)
class PtxSupport:
    """What PTX a device takes."""

    compute_capability: tuple[int, int]
    version: tuple[int, int] = NEWEST_PTX
    """The newest."""

    def check(self, version: tuple[int, int], targets: Iterable[str]) -> None:
        """Raise ``UnsupportedLibrary`` if PTX of this version, or for one of ``targets``, does not run on the device.

        PTX runs on its own architecture and all later ones; that of ``sm_90a`` and its like on its own only, that of ``sm_100f``
        and its like also on later ones of the same major version. Targets that name no architecture, such as ``debug``, do not
        count.
        """
        if version > self.version:
            has, takes = ("{}.{}".format(*each) for each in (version, self.version))
            raise UnsupportedLibrary(f"PTX has version {has}, the device takes at most {takes}; compile it with an older toolkit")
        for target in targets:
            if match := _TARGET.fullmatch(target):
                self._check_target(target, (int(match[1]), int(match[2])), match[3])

    def _check_target(self, target: str, own: tuple[int, int], kind: str) -> None:
        capability = self.compute_capability
        alike = {"": True, "a": own == capability, "f": own[0] == capability[0]}[kind]
        if alike and own <= capability:
            return
        name = "{}.{}".format(*own)
        where = {"": f"{name} or later", "a": f"{name} alone", "f": f"{name} or a later {own[0]}.x"}[kind]
        raise UnsupportedLibrary(
            f"PTX is for {target}, the device is sm_{capability[0]}{capability[1]}: it needs compute capability {where}; "
            f"compile it for another, or start kaasd with --emulator-compute-capability {name}"
        )
