"""What a store must answer: what was written last, unless that was damaged since."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from kaas_core.errors import DataDamagedError, KaasError, KeyNotFoundError, ValueTooShortError
from kaasd.store.base import Namespace
from tests.store.store_process import Put, Seen, Where


@dataclass
class Model:
    values: dict[Where, bytes] = field(default_factory=dict)
    versions: dict[Where, int] = field(default_factory=dict)
    """Of ``values``, as far as they are known."""
    last_version: int = 0
    """All that is written later has a greater one."""
    damaged: set[Where] = field(default_factory=set)
    """Refused until it is stored again."""
    suspects: set[Where] = field(default_factory=set)
    """Right or refused: the next look tells, and from then on it stays that."""

    def copy(self) -> Model:
        return Model(**{name: copy.copy(value) for name, value in vars(self).items()})

    def after(self, puts: Sequence[Put]) -> tuple[Model | None, set[type[KaasError]]]:
        """Return what a commit makes of it, None where it must fail; and as what it may fail, having changed nothing."""
        new, errors = self.copy(), set[type[KaasError]]()
        for where, pieces, offset, create, _ in puts:
            data = b"".join(pieces)
            if offset is None or (create and offset == 0 and where not in new.values):
                new.values[where] = data
                new.damaged.discard(where)
                new.suspects.discard(where)
            elif where not in new.values:
                return None, errors | {KeyNotFoundError}
            else:
                old = new.values[where]
                if where in new.damaged:  # It may lie elsewhere, or all of it may be overwritten.
                    errors.add(DataDamagedError)
                    new.damaged.discard(where)
                    new.suspects.add(where)
                if offset + len(data) > len(old):
                    return None, errors | {ValueTooShortError}
                new.values[where] = old[:offset] + data + old[offset + len(data) :]
            new.versions.pop(where, None)
        return new, errors

    def delete(self, where: Where) -> None:
        del self.values[where]
        self.versions.pop(where, None)
        self.damaged.discard(where)

    def damage(self, keys: Collection[Where]) -> None:
        """Bytes were changed that may be of these."""
        self.suspects |= set(keys) - self.damaged

    def look(self, found: Mapping[Namespace, Sequence[Seen]]) -> None:
        """All that a snapshot shows must be right or refused. Raises ``AssertionError``."""
        versions = [seen.entry.version for some in found.values() for seen in some if seen.entry.version]
        assert len(set(versions)) == len(versions)
        for namespace in Namespace:
            keys = sorted((key for space, key in self.values if space is namespace), key=str.encode)
            assert [seen.entry.key for seen in found[namespace]] == keys
            for entry, data, error in found[namespace]:
                where = namespace, entry.key
                self._check_value(where, data, error)
                if entry.version == 0:
                    assert where in self.damaged
                    continue
                assert entry.size_bytes == len(self.values[where])
                if where not in self.versions:
                    assert entry.version > self.last_version
                assert entry.version == self.versions.setdefault(where, entry.version)
        self.last_version = max([self.last_version, *versions])
        self.suspects.clear()

    def _check_value(self, where: Where, data: bytes, error: KaasError | None) -> None:
        if error is None:
            assert where not in self.damaged
            assert data == self.values[where]
            return
        assert isinstance(error, DataDamagedError)
        assert (error.metadata["kind"], error.metadata["key"]) == (where[0].noun, where[1])
        assert where in self.damaged | self.suspects
        assert self.values[where].startswith(data)
        self.damaged.add(where)
