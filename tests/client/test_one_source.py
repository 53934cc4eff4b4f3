"""The client for threads is generated from the one for asyncio, by a script that notices what it does not fit any more."""

from __future__ import annotations

import pytest

from scripts import unasync

SOURCES = unasync.read(unasync.SOURCE)


def test_what_is_committed_is_current() -> None:
    assert unasync.read(unasync.TARGET) == unasync.translate(SOURCES)


def test_a_generated_file_names_its_source() -> None:
    for name, text in unasync.read(unasync.TARGET).items():
        assert text.startswith(f"# Generated from kaas_client/_async/{name} by `make generate`; do not edit.\n")


def test_a_substitution_that_changes_nothing_is_an_error() -> None:
    sources = {name: text.replace("__aenter__", "enter").replace("__aexit__", "exit") for name, text in SOURCES.items()}
    with pytest.raises(SystemExit, match=r"these substitutions change nothing: .*enter\|exit"):
        unasync.translate(sources)


def test_a_word_of_asyncio_that_is_left_over_is_an_error() -> None:
    with pytest.raises(SystemExit, match=r"_async/extra\.py:2: nothing replaces 'asyncio'"):
        unasync.translate({**SOURCES, "extra.py": '"""One."""\nimport asyncio\n'})


def test_the_primitives_have_the_same_names() -> None:
    from kaas_client import _asyncio, _threads

    assert _asyncio.__all__ == _threads.__all__
