"""Whom stored entries count for: the account of each group, with what it may store and what it has stored.

An entry's record has the number of its account. What an account has stored stands in the store, and is changed by the transaction
that changes the entries: so it is right for all processes, and after a crash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from kaas_core.errors import GroupLimitError, StoreFullError
from kaasd.store.base import DEFAULT_ACCOUNT, Account, Namespace
from kaasd.store.environment import Environment, Transaction
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


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What an entry is to be."""

    size_bytes: int
    account: str


@dataclass(slots=True)
class _Open:
    """An account that a transaction uses."""

    number: int
    name: str
    before: bytes
    """As it stands in the store; empty where it is new."""
    now: Account

    @property
    def raw_key(self) -> bytes:
        return account_key(self.number, self.name)


class Accounts:
    """All accounts, as one transaction sees them. One that writes must ``finish`` them."""

    def __init__(self, environment: Environment, txn: Transaction) -> None:
        self._environment = environment
        self._txn = txn
        self._by_name: dict[str, _Open] = {}
        self._by_number: dict[int, _Open] = {}
        self.is_uncounted = False
        """Whether what was found of one is damaged: all have to be counted anew."""

    def get(self, name: str) -> Account:
        """Return what is known of an account, which may be new."""
        found = self._find(name)
        return Account() if found is None else found.now

    def all(self) -> Mapping[str, Account]:
        """Return what is known of all accounts, by name."""
        return {name: self.get(name) for name in self._names()}

    def check(self, entries: Mapping[Place, NewEntry]) -> None:
        """Raises ``GroupLimitError`` where an account would have more than it may. One that has more already may have less."""
        for name in {entry.account for entry in entries.values()}:
            account = self.get(name)
            if not (account.max_stored_bytes or account.max_keys):
                continue
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
        return self._made(name).number

    def limit(self, name: str, max_stored_bytes: int, max_keys: int) -> None:
        """Say how much an account may have from now on; 0 is no limit. It may have more already. Raises ``StoreFullError``."""
        account = self._made(name)
        account.now = account.now._replace(max_stored_bytes=max_stored_bytes, max_keys=max_keys)

    def count(self, number: int, namespace: Namespace, size_bytes: int, keys: int) -> None:
        """Count an entry in (``keys`` is 1), or out (``keys`` is -1)."""
        if namespace not in COUNTED:
            return
        account = self._by_number.get(number) or self._find_number(number)
        if account is None:
            return  # What was said of it is lost.
        now = account.now
        account.now = now._replace(
            stored_bytes=now.stored_bytes + keys * size_bytes,
            keys=now.keys + keys if namespace is Namespace.VALUES else now.keys,
        )

    def recount(self) -> None:
        """Count all entries anew. Takes some microseconds an entry."""
        for name in self._names():
            self._find(name)
        for account in self._by_number.values():
            account.now = account.now._replace(stored_bytes=0, keys=0)
        for namespace in COUNTED:
            with self._txn.cursor(self._environment.entries[namespace]) as cursor:
                for raw in cursor.iternext(keys=False):
                    try:
                        head = Head.unpack(raw)
                    except Damage:
                        continue
                    self.count(head.account, namespace, head.size_bytes, 1)
        self.is_uncounted = False

    def finish(self, state: StoreState) -> None:
        """Store what was changed, and count it in ``state``."""
        if self.is_uncounted:
            self.recount()
        for account in self._by_number.values():
            raw_key = account.raw_key
            packed = pack_account(raw_key, account.now)
            if packed != account.before:
                if account.before:
                    state.count_loose(account.before)
                state.count_loose(packed)
                self._txn.put(raw_key, packed, db=self._environment.accounts)
                account.before = packed

    # Finding them

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
            account = self._opened(_Open(number, name, b"", Account()))
        return account

    def _find(self, name: str) -> _Open | None:
        """Return an account, None where there is none."""
        account = self._by_name.get(name)
        if account is not None:
            return account
        number = self._environment.account_numbers.get(name)
        raw = None if number is None else self._raw(number, name)
        if raw is None:
            # Another process may have made it; and of what is remembered, a transaction that made it may have failed.
            self._environment.account_numbers = {other: found for found, other in self._raw_keys()}
            number = self._environment.account_numbers.get(name)
            raw = None if number is None else self._raw(number, name)
        if number is None or raw is None:
            return None
        return self._opened(self._read(number, name, raw))

    def _find_number(self, number: int) -> _Open | None:
        """Return the account of a number that a record has; None where that is lost."""
        for is_last in (False, True):
            for name, known in self._environment.account_numbers.items():
                if known == number and (account := self._find(name)) is not None and account.number == number:
                    return account
            if not is_last:
                self._environment.account_numbers = {name: found for found, name in self._raw_keys()}
        return None

    def _names(self) -> list[str]:
        return [name for _, name in self._raw_keys()]

    def _raw_keys(self) -> Iterator[tuple[int, str]]:
        with self._txn.cursor(self._environment.accounts) as cursor:
            for raw_key in cursor.iternext(values=False):
                yield unpack_account_key(raw_key)

    def _raw(self, number: int, name: str) -> bytes | None:
        raw = self._txn.get(account_key(number, name), db=self._environment.accounts)
        return None if raw is None else bytes(raw)

    def _read(self, number: int, name: str, raw: bytes) -> _Open:
        try:
            return _Open(number, name, raw, unpack_account(account_key(number, name), raw))
        except Damage:
            self.is_uncounted = True
            return _Open(number, name, raw, Account())

    def _opened(self, account: _Open) -> _Open:
        self._by_name[account.name] = self._by_number[account.number] = account
        return account
