"""The libraries of the cluster as a node has them: each comes there once, to a file that all its executors read."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

import ray
from cachetools import LRUCache

from kaas_client.ray import table
from kaas_core.errors import LibraryNotFoundError
from kaasd.libraries.registry import CACHE_BYTES, ResolvedLibrary, content_id

_log = logging.getLogger(__name__)


def folder_of_node() -> Path:
    """Return where this node keeps its libraries: in the folder of Ray's session, which they go with."""
    node = ray._private.worker.global_worker.node
    assert node is not None
    return Path(node.get_session_dir_path()) / "kaas" / ray.get_runtime_context().get_node_id()


class NodeLibraries:
    """A ``LibrarySource``, for one executor. For one thread."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is the node's."""
        self._folder = folder
        self._known: LRUCache[str, ResolvedLibrary] = LRUCache(CACHE_BYTES, lambda library: len(library.data))
        self.fetched = 0
        """Libraries that came to the node by this executor."""

    def resolve(self, reference: str) -> ResolvedLibrary:
        """Return the library of a content id. Raises ``LibraryNotFoundError``."""
        library = self._known.get(reference)
        if library is None:
            content = self._content(reference)
            library = ResolvedLibrary(reference, reference, content, None)
            if len(content) <= CACHE_BYTES:
                self._known[reference] = library
        return library

    def is_current(self, resolved: ResolvedLibrary) -> bool:
        """Return True: what a content id stands for does not change."""
        return True

    def _content(self, reference: str) -> bytes:
        try:
            return self._from_file(reference)
        except OSError as error:
            _log.warning("libraries cannot be kept in %s: %s", self._folder, error)
            return self._from_table(reference)

    def _from_file(self, reference: str) -> bytes:
        """Return a library by way of its file. Raises ``OSError``, ``LibraryNotFoundError``."""
        path = self._folder / reference.replace(":", "-")
        if (content := _read(path, reference)) is not None:
            return content
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # so that of several executors one brings it
            if (content := _read(path, reference)) is not None:
                return content
            content = self._from_table(reference)
            new = path.with_suffix(".new")
            new.write_bytes(content)
            os.replace(new, path)  # noqa: PTH105  (the same)
        return content

    def _from_table(self, reference: str) -> bytes:
        content = table.get(table.Kind.LIBRARY, reference.encode())
        if content is None:
            raise LibraryNotFoundError(f"the cluster has no library {reference}")
        self.fetched += 1
        return content


def _read(path: Path, reference: str) -> bytes | None:
    """Return a file's bytes; None where it is not there, or is not what its name says."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return content if content_id(content) == reference else None
