"""Whom stored entries count for: the account of each group, with what it may store and what it has stored.

An entry's record has the number of its account. What an account has stored stands in the store, and is changed by the transaction
that changes the entries: so it is right for all processes, and after a crash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from kaas_core.errors import GroupLimitError, StoreFullError
from kaasd.store.base import DEFAULT_ACCOUNT, Account, Namespace
from kaasd.store.environment import Environment, Transaction
from kaasd.store.recent import unpack_recent
from kaasd.store.records import (
    COUNTED,
    MAX_ACCOUNTS,
    Damage,
    Head,
    StoreState,
    account_key,
    pack_account,
    unpack_account,
    unpack_account_key,
)

Place: TypeAlias = "tuple[Namespace, bytes]"


class NewEntry(NamedTuple):
    """What an entry is to be."""

    size_bytes: int
    account: str


@dataclass(slots=True)
class _Open:
    """An account that a transaction uses. What it has changes with each entry, so that is not an ``Account``."""

    number: int
    raw_key: bytes
    raw: bytes
    """As it stands in the store; empty where it is new."""
    before: Account
    """What that says."""
    stored_bytes: int
    keys: int
    max_stored_bytes: int
    max_keys: int

    @property
    def now(self) -> Account:
        return Account(self.stored_bytes, self.keys, self.max_stored_bytes, self.max_keys)


class Accounts:
    """All accounts, as one transaction sees them. One that writes must ``finish`` them."""

    def __init__(self, environment: Environment, txn: Transaction, state: StoreState) -> None:
        """``state`` has the last replies, which no account in the store counts."""
        self._environment = environment
        self._txn = txn
        self._state = state
        self._by_name: dict[str, _Open] = {}
        self._by_number: dict[int, _Open] = {}
        self._is_damaged = False
        """Whether what was found of one is damaged: all have to be counted anew."""

    def get(self, name: str) -> Account:
        """Return what is known of an account, which may be new."""
        found = self._find(name)
        return Account() if found is None else found.now._replace(stored_bytes=self._stored_bytes(found))

    def all(self) -> Mapping[str, Account]:
        """Return what is known of all accounts, by name."""
        return {name: self.get(name) for name in self._names()}

    def is_limited(self, name: str) -> bool:
        """Whether there is anything to ``check``."""
        account = self._by_name.get(name) or self._find(name)
        return account is not None and (account.max_stored_bytes > 0 or account.max_keys > 0)

    def check(self, entries: Mapping[Place, NewEntry]) -> None:
        """Raises ``GroupLimitError`` where an account would have more than it may. One that has more already may have less."""
        for name in filter(self.is_limited, {entry.account for entry in entries.values()}):
            account = self.get(name)
            more_bytes, more_keys = self._growth(name, entries)
            for limit, most, stored, more, unit in (
                ("max_stored_bytes", account.max_stored_bytes, account.stored_bytes, more_bytes, "bytes"),
                ("max_keys", account.max_keys, account.keys, more_keys, "keys"),
            ):
                if most and more > 0 and stored + more > most:
                    raise GroupLimitError(
                        f"the group {name} may store {most} {unit} ({limit}): it has {stored}, and {more} more are to come",
                        {"group": name, "limit": limit},
                    )

    # Changes

    def number_of(self, name: str) -> int:
        """Return the number of an account, which is made where there is none. Raises ``StoreFullError``."""
        return (self._by_name.get(name) or self._made(name)).number

    def limit(self, name: str, max_stored_bytes: int, max_keys: int) -> None:
        """Say how much an account may have from now on; 0 is no limit. It may have more already. Raises ``StoreFullError``."""
        account = self._made(name)
        account.max_stored_bytes, account.max_keys = max_stored_bytes, max_keys

    def count(self, number: int, namespace: Namespace, size_bytes: int, keys: int) -> None:
        """Count an entry in (``keys`` is 1), or out (``keys`` is -1)."""
        if namespace not in COUNTED:
            return
        account = self._by_number.get(number) or self._find_number(number)
        if account is None:
            return  # What was said of it is lost.
        account.stored_bytes += keys * size_bytes
        if namespace is Namespace.VALUES:
            account.keys += keys

    def recount(self) -> None:
        """Count all entries in the trees anew. Takes some microseconds an entry."""
        for name in self._names():
            self._find(name)
        for account in self._by_number.values():
            account.stored_bytes = account.keys = 0
        for namespace in COUNTED:
            with self._txn.cursor(self._environment.entries[namespace]) as cursor:
                for raw in cursor.iternext(keys=False):
                    try:
                        head = Head.unpack(raw)
                    except Damage:
                        continue
                    self.count(head.account, namespace, head.size_bytes, 1)

    def finish(self) -> None:
        """Store what was changed, and count it in the state."""
        state = self._state
        if self._is_damaged:
            self.recount()
        for name, account in self._by_name.items():
            now = account.now
            if now == account.before and account.raw and not self._is_damaged:
                continue
            packed = pack_account(account.raw_key, now)
            if account.raw:
                state.count_loose(account.raw)
            state.count_loose(packed)
            self._txn.put(account.raw_key, packed, db=self._environment.accounts)
            # Should the transaction fail, that will not be what stands there, and so be read again.
            self._environment.known_accounts[name] = account.number, account.raw_key, packed, now

    # Finding them

    def _stored_bytes(self, account: _Open) -> int:
        """Return what an account has stored, with the last replies."""
        recent = unpack_recent(self._state.recent)
        return account.stored_bytes + sum(len(reply.value) for reply in recent if reply.account == account.number)

    def _growth(self, name: str, entries: Mapping[Place, NewEntry]) -> tuple[int, int]:
        """Return by how many bytes and keys ``entries`` add to an account, less what they take the place of."""
        found = self._find(name)
        number = None if found is None else found.number
        more_bytes = more_keys = 0
        for (namespace, raw_key), entry in entries.items():
            if namespace not in COUNTED:
                continue
            is_key = namespace is Namespace.VALUES
            if entry.account == name:
                more_bytes += entry.size_bytes
                more_keys += is_key
            raw = self._txn.get(raw_key, db=self._environment.entries[namespace])
            if raw is not None:
                try:
                    head = Head.of(raw, namespace, raw_key)
                except Damage:
                    continue
                if head.account == number:
                    more_bytes -= head.size_bytes
                    more_keys -= is_key
        return more_bytes, more_keys

    def _made(self, name: str) -> _Open:
        account = self._find(name)
        if account is None:
            numbers = [number for number, _ in self._raw_keys()] + list(self._by_number)
            number = 0 if name == DEFAULT_ACCOUNT else max(numbers, default=0) + 1
            if number >= MAX_ACCOUNTS:
                raise StoreFullError(f"{MAX_ACCOUNTS} groups have stored something here; there can be no more")
            account = self._opened(name, number, account_key(number, name), b"", Account())
        return account

    def _find(self, name: str) -> _Open | None:
        """Return an account, None where there is none."""
        account = self._by_name.get(name)
        if account is not None:
            return account
        known = self._environment.known_accounts.get(name)
        if known is not None and bytes(self._txn.get(known[1], db=self._environment.accounts) or b"") == known[2]:
            return self._opened(name, *known)
        # Another transaction has changed it, or made it; and of what is remembered, one that made it may have failed.
        numbers = [number for number, other in self._raw_keys() if other == name]
        return self._read(name, numbers[0]) if numbers else None

    def _find_number(self, number: int) -> _Open | None:
        """Return the account of a number that a record has; None where that is lost."""
        name = self._environment.account_names.get(number)
        account = None if name is None else self._find(name)
        if account is None or account.number != number:
            self._environment.account_names = dict(self._raw_keys())
            name = self._environment.account_names.get(number)
            account = None if name is None else self._find(name)
        return account

    def _names(self) -> list[str]:
        return [name for _, name in self._raw_keys()]

    def _raw_keys(self) -> Iterator[tuple[int, str]]:
        with self._txn.cursor(self._environment.accounts) as cursor:
            for raw_key in cursor.iternext(values=False):
                yield unpack_account_key(raw_key)

    def _read(self, name: str, number: int) -> _Open:
        raw_key = account_key(number, name)
        raw = bytes(self._txn.get(raw_key, db=self._environment.accounts) or b"")
        try:
            account = unpack_account(raw_key, raw)
        except Damage:
            self._is_damaged = True
            return self._opened(name, number, raw_key, raw, Account())
        self._environment.known_accounts[name] = number, raw_key, raw, account
        return self._opened(name, number, raw_key, raw, account)

    def _opened(self, name: str, number: int, raw_key: bytes, raw: bytes, account: Account) -> _Open:
        opened = _Open(number, raw_key, raw, account, *account)
        self._by_name[name] = self._by_number[number] = opened
        return opened
