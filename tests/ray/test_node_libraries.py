"""Libraries come to a node once, whatever its executors do."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kaas_client.ray import table
from kaas_client.ray.node_libraries import NodeLibraries
from kaas_core.errors import LibraryNotFoundError
from kaasd.libraries.registry import content_id

CONTENT = b"code"
REFERENCE = content_id(CONTENT)


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """What the cluster's table has."""
    found = {REFERENCE.encode(): CONTENT}
    monkeypatch.setattr(table, "get", lambda kind, key: found.get(key) if kind is table.Kind.LIBRARY else None)
    return found


def test_a_library_is_fetched_once_for_all_executors_of_a_node(tmp_path: Path) -> None:
    executors = [NodeLibraries(tmp_path / "node") for _ in range(8)]

    def resolve(libraries: NodeLibraries) -> None:
        for _ in range(2):
            assert libraries.resolve(REFERENCE).data == CONTENT

    threads = [threading.Thread(target=resolve, args=(each,)) for each in executors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each.fetched for each in executors) == 1
    library = executors[0].resolve(REFERENCE)
    assert executors[0].is_current(library)


def test_a_file_that_is_damaged_is_fetched_again(tmp_path: Path) -> None:
    assert NodeLibraries(tmp_path).resolve(REFERENCE).data == CONTENT
    for path in tmp_path.glob("sha256*"):
        path.write_bytes(b"cod")
    again = NodeLibraries(tmp_path)
    assert again.resolve(REFERENCE).data == CONTENT
    assert again.fetched == 1


def test_where_no_file_can_be_written_it_is_fetched_by_each(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        libraries = NodeLibraries(tmp_path / "file")
        assert libraries.resolve(REFERENCE).data == CONTENT
        assert libraries.fetched == 1


def test_a_library_that_the_cluster_has_not_is_not_found(tmp_path: Path, rows: dict[bytes, bytes]) -> None:
    rows.clear()
    with pytest.raises(LibraryNotFoundError):
        NodeLibraries(tmp_path).resolve(REFERENCE)
