"""A kind of device that another package adds, by an entry point alone: it passes the conformance tests that it can."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from kaasd.devices.registry import available, kind_of, open_device

ROOT = Path(__file__).parents[2]
OTHER_KERNELS = [
    "test_requests.py::test_the_workloads_of_the_demo",
    "test_device.py::test_attributes_of_the_example_kernels",
    "test_device.py::test_required_block_of_ptx",
    "test_device.py::test_containers_of_ptx",
    "test_device.py::test_shared_object_has_the_kernels_of_all_its_units",
    "test_device.py::test_cubin_runs_on_its_architecture_only",
    "test_device.py::test_an_unknown_instruction_is_refused_by_name",
    "test_device.py::test_iterations_repeat_all_launches_in_order",
    "test_device.py::test_dynamic_shared_memory_beyond_what_needs_no_opt_in",
    "test_device.py::test_a_temporary_lives_between_launches_only",
]
"""Tests of kernels that this device does not have, or of the code that it does not look into."""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A directory with the metadata of a package that adds the device."""
    metadata = tmp_path / "small_device-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: small-device\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[kaasd.devices]\nsmall = tests.devices.small_device:KIND\n")
    return tmp_path


def test_a_kind_of_another_package_is_known_by_its_names(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no device 'small': a device is auto, emulator"):
        kind_of("small")
    monkeypatch.syspath_prepend(packages)
    assert available(["small", "emulator"]) == ["small", "emulator"]
    with closing(open_device("small")) as device:
        assert device.properties.name == "small"
    with pytest.raises(ValueError, match="there is no device 'other': a device is auto, small, emulator"):
        kind_of("other")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_conformance(packages: Path) -> None:
    suites = [f"tests/conformance/{name}" for name in ("test_device.py", "test_requests.py", "test_limits.py")]
    without = [f"--deselect=tests/conformance/{name}" for name in OTHER_KERNELS]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT), str(ROOT / "proto")])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", "small", *suites, *without]
    child = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
    passed = re.search(r"(\d+) passed", child.stdout)
    assert passed is not None and int(passed[1]) >= 30
