"""Which PTX devices say that they take."""

from __future__ import annotations

import pytest

from kaasd.devices.targets import newest_ptx, targets_of


@pytest.mark.parametrize(
    ("capability", "last"),
    [((7, 0), ["sm_62", "sm_70"]), ((9, 0), ["sm_89", "sm_90", "sm_90a"]), ((7, 1), ["sm_70", "sm_71"])],
)
def test_older_architectures_and_ones_own(capability: tuple[int, int], last: list[str]) -> None:
    found = targets_of(capability)
    assert found[0] == "sm_50"
    assert list(found[-len(last) :]) == last


def test_families_are_those_of_one_major_version() -> None:
    assert targets_of((10, 3))[-5:] == ("sm_103", "sm_100f", "sm_101f", "sm_103f", "sm_103a")
    assert targets_of((12, 0))[-3:] == ("sm_120", "sm_120f", "sm_120a")


@pytest.mark.parametrize(("cuda", "ptx"), [((10, 2), 0), ((12, 6), 85), ((13, 0), 90), ((13, 5), 95), ((14, 1), 95)])
def test_ptx_of_a_release(cuda: tuple[int, int], ptx: int) -> None:
    assert newest_ptx(cuda) == ptx
