"""Which PTX devices take: architectures by compute capability, and versions by release of CUDA."""

from __future__ import annotations

_ARCHITECTURES = (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 88, 89, 90, 100, 101, 103, 107, 110, 120, 121)
_FIRST_OF_ONE, _FIRST_OF_A_FAMILY = 90, 100
"""From which on an architecture has PTX for itself alone, as ``sm_90a``, and for its family, as ``sm_100f``."""
_PTX_OF_CUDA = {
    (11, 0): 70, (11, 1): 71, (11, 2): 72, (11, 3): 73, (11, 4): 74, (11, 5): 75, (11, 6): 76, (11, 7): 77, (11, 8): 78,
    (12, 0): 80, (12, 1): 81, (12, 2): 82, (12, 3): 83, (12, 4): 84, (12, 5): 85, (12, 6): 85, (12, 7): 86,
    (12, 8): 87, (12, 9): 88,
    (13, 0): 90, (13, 1): 91, (13, 2): 92, (13, 3): 93, (13, 4): 94, (13, 5): 95,
}  # fmt: skip
"""Source: PTX ISA, release notes."""


def targets_of(capability: tuple[int, int]) -> tuple[str, ...]:
    """Return the targets whose PTX runs on a device of this compute capability, oldest first."""
    own = 10 * capability[0] + capability[1]
    plain = [f"sm_{each}" for each in _ARCHITECTURES if each < own] + [f"sm_{own}"]
    family = [f"sm_{each}f" for each in (*_ARCHITECTURES, own) if _FIRST_OF_A_FAMILY <= each <= own and each // 10 == own // 10]
    return (*plain, *dict.fromkeys(family), *([f"sm_{own}a"] if own >= _FIRST_OF_ONE else []))


def newest_ptx(cuda: tuple[int, int]) -> int:
    """Return the newest PTX of a release of CUDA, 87 for 8.7; of one that is not known, that of the last one before it."""
    return max((ptx for release, ptx in _PTX_OF_CUDA.items() if release <= cuda), default=0)
