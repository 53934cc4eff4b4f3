"""What the README and the examples show works as it stands there, against a real daemon."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

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


def test_node_invokes_what_python_registered(node_environ: dict[str, str]) -> None:
    output_of(["python", "-c", block("python")], node_environ)
    output = output_of(["node", "--input-type=module", "-"], node_environ, cwd=NODE_EXAMPLES, stdin=block("js"))
    assert output.split() == [str(DOT)]


def test_node_puts_uploads_submits_and_gets(node_environ: dict[str, str]) -> None:
    """With two inputs of its own; NumPy computes what it should print."""
    expected = np.sum(VECTOR * (3 * VECTOR + 1), dtype=np.uint32)
    output = output_of(["node", "first_request.js", node_environ["KAAS_ADDRESS"]], node_environ, cwd=NODE_EXAMPLES)
    assert output.split() == [str(expected)]
    stored = output_of(["sh", "-c", "kaasctl kv get c | od -A n -t u4"], node_environ)
    assert stored.split() == [str(expected)]
