"""How each slot of a plan is filled and emptied, by its size and its uses."""

from __future__ import annotations

import pytest

from kaas_core.request import BufferSpec
from kaasd.request.plan import SMALL_BYTES, Layout, rebind
from tests.request.test_plan import launches, plan_of

SMALL, LARGE = SMALL_BYTES, SMALL_BYTES + 1


def layout(uses: str, size: int, *, constant: bool = False, ephemeral: bool = False, keep_stored: bool = False) -> set[str]:
    """Return in which parts of the layout a buffer is, which the kernels use one after the other."""
    spec = BufferSpec("x", size, constant=constant, ephemeral=ephemeral)
    made = Layout.of(plan_of(launches([spec], *(f"x:{use}" for use in uses.split()))), keep_stored=keep_stored)
    return {name for name in made.__slots__ if getattr(made, name) == (0,)}


@pytest.mark.parametrize(
    ("uses", "small", "large"),
    [
        ("i", {"uploaded", "own"}, {"shared"}),
        ("i i", {"uploaded", "own"}, {"shared"}),
        ("io", {"uploaded", "downloaded", "own"}, {"copied", "own"}),
        ("i o", {"uploaded", "downloaded", "own"}, {"copied", "own"}),
        ("i t", {"uploaded", "own"}, {"copied", "own"}),
        ("o", {"zeroed", "downloaded", "own"}, {"zeroed", "own"}),
        ("t", {"zeroed", "own"}, {"zeroed", "own"}),
        ("t o", {"zeroed", "downloaded", "own"}, {"zeroed", "own"}),
    ],
)
def test_by_uses_and_size(uses: str, small: set[str], large: set[str]) -> None:
    assert layout(uses, SMALL) == small
    assert layout(uses, LARGE) == large


def test_a_constant_that_is_never_written_is_shared_however_small() -> None:
    assert layout("i", 4, constant=True) == layout("i", LARGE, constant=True) == {"shared"}
    assert layout("io", 4, constant=True) == {"uploaded", "downloaded", "own"}


def test_an_ephemeral_buffer_is_never_loaded() -> None:
    assert layout("i", 4, ephemeral=True) == layout("t", LARGE, ephemeral=True) == {"zeroed", "own"}
    assert layout("io", 4, ephemeral=True) == {"zeroed", "downloaded", "own"}


@pytest.mark.parametrize(
    ("uses", "expected"),
    [("o", {"kept"}), ("io", {"copied", "kept"}), ("i", {"shared"}), ("t", {"zeroed", "own"}), ("t o", {"kept"})],
)
def test_what_is_large_and_stored_may_be_kept(uses: str, expected: set[str]) -> None:
    assert layout(uses, LARGE, keep_stored=True) == expected
    assert layout(uses, SMALL, keep_stored=True) == layout(uses, SMALL)
    assert "kept" not in layout(uses, LARGE, ephemeral=True, keep_stored=True)


def test_slots_are_told_apart() -> None:
    specs = [BufferSpec("a", LARGE), BufferSpec("b", 4), BufferSpec("c", 8), BufferSpec("d", LARGE)]
    plan = plan_of(launches(specs, "c:o a:i", "b:i d:io"))
    assert plan.slot_index == {"c": 0, "a": 1, "b": 2, "d": 3}
    assert plan.device_bytes == 2 * LARGE + 12
    assert Layout.of(plan) == Layout(uploaded=(2,), shared=(1,), copied=(3,), zeroed=(0,), downloaded=(0,), own=(0, 2, 3))
    kept = Layout.of(plan, keep_stored=True)
    assert kept == Layout(uploaded=(2,), shared=(1,), copied=(3,), zeroed=(0,), downloaded=(0,), own=(0, 2), kept=(3,))
    assert kept.given == (1, 3)


def test_a_slot_knows_its_key() -> None:
    plan = plan_of(launches([BufferSpec("a", 4), BufferSpec("b", 4, key="other")], "a:i b:o"))
    assert [slot.key for slot in plan.slots] == ["a", "other"]
    again = rebind(plan, {"a": "new"})
    assert [slot.key for slot in again.slots] == ["new", "other"]
    assert Layout.of(again) == Layout.of(plan)
