"""What compiles libraries for emulated devices, in a process of its own or in the one that runs them."""

from __future__ import annotations

import json
from collections import OrderedDict
from hashlib import sha256

from kaas.worker.v1 import compiler_pb2
from kaasd.devices.emulator.ptx.architecture import PtxSupport
from kaasd.devices.emulator.translation.target import target_text
from kaasd.devices.emulator.translation.unit import PtxUnit
from kaasd.libraries import UnsupportedLibrary
from kaasd.libraries.image import ImageKind, read_image

MOST_KEPT_BYTES = 1 << 20
"""Of PTX that is kept parsed and lowered, where some 500 times as much memory goes, for the kernels that are asked for next. The
last library is kept in any case."""


class Translator:
    """See ``kaasd.devices.base.LibraryCompiler``. Used by one thread."""

    def __init__(self, support: PtxSupport, checks: frozenset[str]) -> None:
        self._support = support
        self._checks = checks
        self._kept: OrderedDict[bytes, list[PtxUnit]] = OrderedDict()
        self._kept_bytes: dict[bytes, int] = {}

    @classmethod
    def for_target(cls, target: str) -> Translator:
        """Return what compiles for a target, as ``target_text`` wrote it. Raises ``UnsupportedLibrary`` where it cannot here."""
        wanted = json.loads(target)
        support = PtxSupport(tuple(wanted["compute_capability"]), tuple(wanted["ptx_version"]))
        checks = frozenset(wanted["checks"])
        if target_text(support, checks) != target:
            raise UnsupportedLibrary("kaasd was changed on the disk since it was started, so it can compile nothing: restart it")
        return cls(support, checks)

    def describe(self, image: bytes) -> bytes:
        content = read_image(image)
        if not content.ptx and content.kind is not ImageKind.WRAPPER:
            raise UnsupportedLibrary(
                f"the {content.kind.value} has no PTX in it, only machine code, which the emulated device cannot run"
            )
        units = self._units(image, content.ptx)
        return compiler_pb2.EmulatedLibrary(
            units=[unit.describe() for unit in units], host_functions=content.host_functions
        ).SerializeToString()

    def compile(self, image: bytes, kernel: str) -> bytes:
        units = self._units(image)
        # Where two texts have a kernel of one name it is the later one's, as when they are loaded.
        unit = next(unit for unit in reversed(units) if kernel in unit.kernels)
        return unit.compile(kernel).SerializeToString()

    def _units(self, image: bytes, texts: tuple[str, ...] = ()) -> list[PtxUnit]:
        digest = sha256(image).digest()
        if digest not in self._kept:
            texts = texts or read_image(image).ptx
            self._kept[digest] = [PtxUnit(text, self._support, self._checks) for text in texts]
            self._kept_bytes[digest] = sum(map(len, texts))
            while len(self._kept) > 1 and sum(self._kept_bytes.values()) > MOST_KEPT_BYTES:
                del self._kept_bytes[self._kept.popitem(last=False)[0]]
        self._kept.move_to_end(digest)
        return self._kept[digest]
