"""The demo, as ``make demo`` runs it, on the emulated device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.interop.conftest import ROOT


@pytest.mark.timeout(420)
def test_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.demo", "--device", "emulator", "--output", str(tmp_path)]
    demo = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=400)
    assert demo.returncode == 0, demo.stdout
    assert "ran on emulator: " in demo.stdout
    assert demo.stdout.count(" equal ") == 2
    assert str(tmp_path / "blurred.png") in demo.stdout

    picture, blurred = Image.open(tmp_path / "picture.png"), Image.open(tmp_path / "blurred.png")
    # 24 passes of a stencil of variance 1 are a Gaussian blur of variance 24; Pillow's is an approximation of that.
    gaussian = picture.filter(ImageFilter.GaussianBlur(24**0.5))
    difference = np.abs(np.asarray(blurred, dtype=np.int16) - np.asarray(gaussian, dtype=np.int16))
    assert difference.mean() < 1 and np.percentile(difference, 99) < 8
    assert np.abs(np.asarray(blurred, dtype=np.int16) - np.asarray(picture, dtype=np.int16)).mean() > 3
