"""Generates the client for threads, ``kaas_client/_sync``, from the one for asyncio, ``kaas_client/_async``.

    python scripts/unasync.py           write the files
    python scripts/unasync.py --check   write nothing; exit with 1 where they are not current

A substitution that changes nothing is an error, and so is a word of asyncio that is left over.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE, TARGET = Path("kaas_client/_async"), Path("kaas_client/_sync")
SUBSTITUTIONS = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bkaas_client\._async\b", "kaas_client._sync"),
    (r"\bkaas_client\._asyncio\b", "kaas_client._threads"),
    # In docstrings.
    (r"\b([Ff])or asyncio\b", r"\1or threads"),
    (r"\bfor one event loop\b", "for any number of threads"),
    (r"\ban asynchronous context manager\b", "a context manager"),
    (r"\s+Cancelling a task cancels its call\.", ""),
)
LEFT_OVER = re.compile(r"\w*async\w*|\bawait\w*|\baio\b|\bevent loop\b", re.IGNORECASE)


def main() -> int:
    fresh = translate(read(SOURCE))
    if "--check" in sys.argv[1:]:
        found = read(TARGET)
        stale = sorted(name for name in fresh.keys() | found.keys() if fresh.get(name) != found.get(name))
        print(*(f"{TARGET / name} is not what `make generate` makes" for name in stale), sep="\n", file=sys.stderr)
        return 1 if stale else 0
    for name, text in fresh.items():
        (ROOT / TARGET / name).write_text(text)
    return 0


def read(folder: Path) -> dict[str, str]:
    """Return the text of each file of a folder, by its name."""
    return {path.name: path.read_text() for path in sorted((ROOT / folder).glob("*.py")) if path.name != "__init__.py"}


def translate(sources: dict[str, str]) -> dict[str, str]:
    """Return the text of each generated file, by its name."""
    fresh = {}
    unused = {pattern for pattern, _ in SUBSTITUTIONS}
    for name, text in sources.items():
        for pattern, replacement in SUBSTITUTIONS:
            text, count = re.subn(pattern, replacement, text)
            if count:
                unused.discard(pattern)
        if left := LEFT_OVER.search(text):
            raise SystemExit(f"{SOURCE / name}:{text[: left.start()].count(chr(10)) + 1}: nothing replaces {left[0]!r}")
        header = f"# Generated from {SOURCE / name} by `make generate`; do not edit.\n"
        fresh[name] = tidy(TARGET / name, header + text)
    if unused:
        raise SystemExit(f"these substitutions change nothing: {', '.join(sorted(unused))}")
    return fresh


def tidy(path: Path, text: str) -> str:
    """Return ``text`` with its imports sorted and its lines broken as `make format` would."""
    for command in (["check", "--select", "I", "--fix-only", "--quiet"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(path), "-"]
        text = subprocess.run(ruff, input=text, stdout=subprocess.PIPE, cwd=ROOT, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    raise SystemExit(main())
