"""How a device reports kernels that misbehave."""

from __future__ import annotations

import pytest

from tests.conformance.fault_cases import run_case

EXPECTED = {
    "write": ("CUDA_ERROR_ILLEGAL_ADDRESS", 1),
    "read": ("CUDA_ERROR_ILLEGAL_ADDRESS", 0),
    "misaligned": ("CUDA_ERROR_MISALIGNED_ADDRESS", 2),
    "trap": ("CUDA_ERROR_LAUNCH_FAILED", 0),
    "expect": ("CUDA_ERROR_LAUNCH_FAILED", 2),
    "in a later iteration": ("CUDA_ERROR_LAUNCH_FAILED", 0),
}
"""The fault's name and the index of the launch."""


@pytest.mark.parametrize("case", EXPECTED)
def test_a_fault_has_its_name_and_its_launch(device_name: str, case: str) -> None:
    result = run_case(device_name, case)
    assert (result["fault"], result["launch"]) == EXPECTED[case]
    assert result["message"]
    # An emulated device is none the worse for it; a CUDA context is gone.
    assert result["lost"] == device_name.startswith("cuda")


def test_no_fault(device_name: str) -> None:
    assert run_case(device_name, "none") == {"fault": None}


def test_stopping_a_kernel_that_never_ends(device_name: str) -> None:
    if not device_name.startswith("cuda"):
        assert run_case(device_name, "spin") == {"stopped": True, "usable": True}
    else:
        assert run_case(device_name, "spin") == {"stopped": False}
        assert run_case(device_name, "none") == {"fault": None}
