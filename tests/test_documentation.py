"""The pages are true of the tree: every link and path leads somewhere, and every function that they name exists."""

from __future__ import annotations

import ast
import builtins
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
PACKAGES = ("kaasd", "kaas_core", "kaas_client", "proto")


@cache
def defined() -> set[str]:
    """Return every class and function of the packages and stubs by name, and every method as ``Class.method`` too."""
    names = set(dir(builtins))
    for package in PACKAGES:
        for path in [*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("*.pyi")]:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    names.add(node.name)
                if isinstance(node, ast.ClassDef):
                    names |= {f"{node.name}.{name}" for each in node.body if (name := getattr(each, "name", None))}
    return names


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)  # code has brackets too
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("http")]
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    """A path is given from the root, or from within one of the packages, as in ``front/functions.py``. Others are not ours."""
    paths = re.findall(r"`(\w+/[\w/]+(?:\.\w+)?)`", (ROOT / page).read_text())
    starts = [ROOT, *(ROOT / package for package in PACKAGES)]
    ours = [path for path in paths if any((start / path.split("/")[0]).exists() for start in starts)]
    assert [path for path in ours if not any((start / path).exists() for start in starts)] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/design/store.md"])
def test_names_are_defined(page: str) -> None:
    names = re.findall(r"`([A-Z]\w*[a-z]\w*(?:\.(?!md`)\w+)?)`", (ROOT / page).read_text())
    assert names
    assert [name for name in names if name not in defined()] == []


def test_files_are_where_their_row_says() -> None:
    """Rows that begin with a folder name files within it."""
    rows = re.findall(r"^\| \[?`([\w/]+)`.*?\|(.*)$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    named = [
        (folder, name) for folder, row in rows if (ROOT / folder).is_dir() for name in re.findall(r"`(\w+\.(?:py|proto))`", row)
    ]
    assert named
    assert [f"{folder}/{name}" for folder, name in named if not list((ROOT / folder).rglob(name))] == []
