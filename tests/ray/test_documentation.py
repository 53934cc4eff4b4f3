"""What docs/ray.md shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.ray.support import DOT

PAGE = (Path(__file__).parents[2] / "docs/ray.md").read_text()


@pytest.mark.usefixtures("cluster")
def test_the_first_example(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert code.count("ray.init(") == 2
    here = code.replace('ray.init(address="auto")', "").replace("kaas_ray.init()", 'kaas_ray.init("emulator")')
    exec(here.replace("/path/dot.ptx", DOT), {})
    a = np.arange(1024, dtype="u4")
    assert capsys.readouterr().out.split() == [str(np.sum(a * a, dtype="u4"))]
