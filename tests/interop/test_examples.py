"""What the README and the examples show works as it stands there, against a real daemon."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kaas_client import Client
from tests.interop.conftest import NODE_EXAMPLES, ROOT, output_of

README = (ROOT / "README.md").read_text()

VECTOR = np.arange(1024, dtype=np.uint32)
DOT = int(np.sum(VECTOR * VECTOR, dtype=np.uint32))
"""What the README's requests compute."""


def block(language: str) -> str:
    """Return the README's only block in a language."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return code


def test_python(environ: dict[str, str]) -> None:
    assert output_of(["python", "-c", block("python")], environ).split() == [f"[{DOT}]", "NumPy", "says", str(DOT)]


def test_the_python_example_is_the_readme_block() -> None:
    _, code = (ROOT / "examples/first_request.py").read_text().split('"""\n\n')
    assert code == block("python")


def test_shell(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    output = output_of(["sh", "-e", "-c", block("sh")], environ, cwd=tmp_path)
    assert output.split()[-1] == str(DOT)


@pytest.mark.parametrize(("name", "lines"), [("network", 3), ("gemm_chain", 3), ("complex_gemm", 3)])
def test_workloads(environ: dict[str, str], name: str, lines: int) -> None:
    output = output_of(["python", "-W", "ignore", str(ROOT / f"examples/{name}.py")], environ)
    assert output.count("the largest difference from NumPy is") == lines
    assert (ROOT / f"docs/examples/{name.replace('_', '-')}.md").is_file()


def test_node_invokes_what_python_registered(node_environ: dict[str, str]) -> None:
    output_of(["python", "-c", block("python")], node_environ)
    output = output_of(["node", "--input-type=module", "-"], node_environ, cwd=NODE_EXAMPLES, stdin=block("js"))
    assert output.split() == [str(DOT)]


@pytest.mark.parametrize(
    ("arguments", "program", "code"), [(["first_request.js"], "", 2), (["--input-type=module", "-"], block("js"), 1)]
)
def test_node_says_what_to_do_without_an_address(
    node_environ: dict[str, str], arguments: list[str], program: str, code: int
) -> None:
    environ = {name: value for name, value in node_environ.items() if name != "KAAS_ADDRESS"}
    child = subprocess.run(
        ["node", *arguments], cwd=NODE_EXAMPLES, env=environ, input=program, capture_output=True, text=True, timeout=100
    )
    assert (child.returncode, child.stdout) == (code, "")
    assert "set KAAS_ADDRESS to the address that kaasd prints" in child.stderr


def test_node_puts_uploads_submits_and_gets(node_environ: dict[str, str]) -> None:
    """With two inputs of its own; NumPy computes what it should print."""
    expected = np.sum(VECTOR * (3 * VECTOR + 1), dtype=np.uint32)
    output = output_of(["node", "first_request.js", node_environ["KAAS_ADDRESS"]], node_environ, cwd=NODE_EXAMPLES)
    assert output.split() == [str(expected)]
    stored = output_of(["sh", "-c", "kaasctl kv get c | od -A n -t u4"], node_environ)
    assert stored.split() == [str(expected)]


def test_node_speaks_the_local_channel(node_environ: dict[str, str]) -> None:
    """Many calls at once, of a function that Python registered."""
    output_of(["python", "-c", block("python")], node_environ)
    with Client(node_environ["KAAS_ADDRESS"]) as kaas:
        kaas.put("a", VECTOR)
        kaas.put("b", VECTOR)
    command = ["node", "local_channel.js", node_environ["KAAS_ADDRESS"], "dot", "c", "100"]
    expected = np.uint32(DOT).tobytes().hex()
    assert output_of(command, node_environ, cwd=NODE_EXAMPLES).split() == [expected] * 100


def test_node_tells_how_a_call_over_the_local_channel_fails(node_environ: dict[str, str]) -> None:
    command = ["node", "local_channel.js", node_environ["KAAS_ADDRESS"], "absent", "c"]
    child = subprocess.run(command, cwd=NODE_EXAMPLES, env=node_environ, capture_output=True, text=True, timeout=100)
    assert (child.returncode, child.stdout) == (1, "")
    assert "'absent'" in child.stderr and "at Socket" in child.stderr
