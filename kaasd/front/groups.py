"""The groups of one server: whom calls are for, what each is granted, and what it uses.

Those that were set are kept in the store, and in memory so that looking one up reads nothing. Those of the settings file are in
memory only, and stand before stored ones of the same name. Only the front changes groups, so what it loaded at its start and
changed since is the truth.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Protocol

from google.protobuf.message import DecodeError

from kaas.v1 import admin_pb2
from kaas_core.errors import (
    DataDamagedError,
    GroupNotFoundError,
    InvalidRequestError,
    KaasError,
    KeyNotFoundError,
    NotEnabledError,
)
from kaas_core.violations import shown
from kaasd import scheduling
from kaasd.front.grants import Grant, check
from kaasd.front.reservations import Reserving, check_reservation
from kaasd.scheduling import DEFAULT_GROUP
from kaasd.scheduling.shares import Shares
from kaasd.store.base import Account, KeyValueStore, Namespace, Write
from kaasd.store.contents import contents

_log = logging.getLogger(__name__)


class GroupsListener(Protocol):
    """Who schedules requests by their groups."""

    def set_group(self, group: scheduling.Group) -> None:
        """A group was made, or is granted something else from now on."""

    def remove_group(self, name: str) -> None:
        """A group takes no more requests. It was made before."""

    def use(self, name: str) -> scheduling.GroupUse:
        """Return what a group uses, which was made before."""

    def leaving(self) -> Iterable[str]:
        """Return the groups that take no more requests and have some still; ``use`` knows them."""

    def shares(self) -> Mapping[str, Shares]:
        """Return which part of the devices each group is due, and has got, by name."""

    @property
    def waited_ns(self) -> Mapping[str, int]:
        """For how long requests have waited, in sum, by group; 0 is left out."""


class Groups:
    """The groups of one server. Used by one event loop. There is always one that is called ``default``."""

    def __init__(
        self,
        store: KeyValueStore,
        fixed: Iterable[Grant] = (),
        devices: Reserving | None = None,
    ) -> None:
        """``fixed`` are those of the settings file; ``devices`` are told what to reserve.

        Raises ``InvalidRequestError`` where they cannot reserve what the settings file wants.
        """
        self._store = store
        self._devices = devices
        self._reserving: Mapping[str, int] = {}
        """What the devices were told, by group."""
        self._grants: dict[str, Grant] = {}
        self._damaged: dict[str, DataDamagedError] = {}
        """What stands in the store under a name, but is not what was set."""
        self._listener: GroupsListener | None = None
        self._writing = asyncio.Lock()
        self._load()
        for grant in fixed:
            if grant.name in self._grants or grant.name in self._damaged:
                _log.warning("group %s is in the settings file; what was set for it before does not count", grant.name)
            self._damaged.pop(grant.name, None)
            self._grants[grant.name] = grant
        if DEFAULT_GROUP not in self._grants:
            if self._damaged.pop(DEFAULT_GROUP, None) is not None:
                _log.warning("group %s has no limits until they are set again", DEFAULT_GROUP)
            self._grants[DEFAULT_GROUP] = check(admin_pb2.Group(name=DEFAULT_GROUP))
        for grant in self._grants.values():
            if grant.fixed:
                self._check_reservation(grant.message, f"groups.{grant.name}")
        self._limit_all()
        self._reserve()

    def __contains__(self, name: str) -> bool:
        return name in self._grants

    def get(self, name: str) -> Grant:
        """Return what a group is granted.

        Raises ``GroupNotFoundError``; ``DataDamagedError`` where what was stored of it cannot be read.
        """
        found = self._grants.get(name)
        if found is None:
            if name in self._damaged:
                raise DataDamagedError(self._damaged[name].message, self._damaged[name].metadata)
            raise _not_found(name)
        return found

    def resolve(self, named: str, own: str = "") -> str:
        """Return whom a call is for: the group that it names, else ``own``, which is that of its socket, else ``default``.

        Raises ``GroupNotFoundError``, also where the call's socket is for another one; ``DataDamagedError``.
        """
        if own and named and named != own:
            raise _not_found(named)
        name = named or own or DEFAULT_GROUP
        self.get(name)
        return name

    def list(self, after: str = "", limit: int = 100) -> list[admin_pb2.Group]:
        """Return at most ``limit`` groups whose name is greater than ``after``, in order; none that is damaged."""
        names = heapq.nsmallest(limit, (name for name in self._grants if name > after))
        return [self._grants[name].message for name in names]

    def use(self, name: str) -> admin_pb2.GroupUse:
        """Return what a group uses. Raises as ``get``."""
        self.get(name)
        return self._use(name, self._store.accounts().get(name, Account()), self._shares())

    def uses(self) -> dict[str, admin_pb2.GroupUse]:
        """Return what each group uses, by name, also those that were deleted and have requests still."""
        accounts, shares = self._store.accounts(), self._shares()
        leaving = () if self._listener is None else self._listener.leaving()
        return {name: self._use(name, accounts.get(name, Account()), shares) for name in (*self._grants, *leaving)}

    def check_room(self, name: str, key: str, size_bytes: int) -> None:
        """Raise ``GroupLimitError`` where a value would be more than a group may store, before its bytes have come."""
        granted = self._grants[name].message
        if granted.max_stored_bytes or granted.max_keys:
            self._store.check_account(name, key, size_bytes)

    def listen(self, listener: GroupsListener) -> None:
        """Tell ``listener`` of all groups, and of every change from now on."""
        self._listener = listener
        for grant in self._grants.values():
            listener.set_group(grant.scheduled)

    async def set(self, message: admin_pb2.Group) -> admin_pb2.Group:
        """Make a group, or change all that it is granted; return that with defaults filled in.

        Raises ``InvalidRequestError``, ``NotEnabledError`` (a group of the settings file), ``StoreFullError``.
        """
        grant = check(message)
        async with self._writing:  # The order in the store is the order in memory.
            self._check_free(grant.name)
            self._check_reservation(grant.message, "group")
            write = Write(grant.name, [grant.message.SerializeToString()], namespace=Namespace.GROUPS)
            await asyncio.wrap_future(self._store.commit([write]))
            await asyncio.wrap_future(self._limit(grant.message))
            self._grants[grant.name] = grant
            self._damaged.pop(grant.name, None)
            self._reserve()
            if self._listener is not None:
                self._listener.set_group(grant.scheduled)
        return grant.message

    async def delete(self, name: str) -> None:
        """Take no more calls for a group. What it has stored stays, and counts as its own where it is made again.

        Raises ``GroupNotFoundError``, ``NotEnabledError`` (a group of the settings file), ``InvalidRequestError`` (``default``).
        """
        if name == DEFAULT_GROUP:
            raise InvalidRequestError.at("name", f"the group {DEFAULT_GROUP} is always there, and cannot be deleted")
        async with self._writing:
            self._check_free(name)
            if name not in self._damaged:
                self.get(name)
            try:
                await asyncio.wrap_future(self._store.delete(name, Namespace.GROUPS))
            except KeyNotFoundError:
                _log.warning("group %s was in memory but not in the store", name)
            self._damaged.pop(name, None)
            if self._grants.pop(name, None) is not None:
                self._reserve()
                if self._listener is not None:
                    self._listener.remove_group(name)

    def _shares(self) -> Mapping[str, Shares]:
        return {} if self._listener is None else self._listener.shares()

    def _use(self, name: str, account: Account, shares: Mapping[str, Shares]) -> admin_pb2.GroupUse:
        use = admin_pb2.GroupUse(stored_bytes=account.stored_bytes, keys=account.keys)
        if self._listener is not None:
            scheduled = self._listener.use(name)
            use.queued, use.queued_bytes, use.running = scheduled.queued, scheduled.queued_bytes, scheduled.running
            use.started, use.resident = scheduled.started, scheduled.resident
            use.device_time.FromNanoseconds(round(scheduled.device_s * 1e9))
            if name in shares:
                use.share_wanted, use.share_got = shares[name].wanted, shares[name].got
            use.queue_time.FromNanoseconds(self._listener.waited_ns.get(name, 0))
        return use

    def _limit(self, granted: admin_pb2.Group) -> Future[None]:
        """Have the store, and so all processes that write to it, know what a group may store."""
        return self._store.limit_account(granted.name, granted.max_stored_bytes, granted.max_keys)

    def _check_free(self, name: str) -> None:
        grant = self._grants.get(name)
        if grant is not None and grant.fixed:
            raise NotEnabledError(
                f"the group {name} is in the settings file of kaasd: change it there, and start kaasd again", {"group": name}
            )

    def _check_reservation(self, message: admin_pb2.Group, path: str) -> None:
        """Raises ``InvalidRequestError`` where the devices have not the multiprocessors that are to be a group's own."""
        wanted = {**self._reserved(), message.name: message.reserved_multiprocessors}
        devices = () if self._devices is None else self._devices.reservable()
        check_reservation(message.name, wanted, devices, f"{path}.reserved_multiprocessors")

    def _reserved(self) -> dict[str, int]:
        granted = (grant.message for grant in self._grants.values())
        return {each.name: each.reserved_multiprocessors for each in granted if each.reserved_multiprocessors}

    def _reserve(self) -> None:
        """Have the devices know of all reservations."""
        if self._devices is not None and (reserved := self._reserved()) != self._reserving:
            self._devices.reserve(reserved)
            self._reserving = reserved

    def _limit_all(self) -> None:
        """Have the store know what all groups may store; what the settings file says may be new."""
        accounts = self._store.accounts()
        for grant in self._grants.values():
            granted, known = grant.message, accounts.get(grant.name, Account())
            if (granted.max_stored_bytes, granted.max_keys) != (known.max_stored_bytes, known.max_keys):
                self._limit(granted).result()

    def _load(self) -> None:
        for name, stored in contents(self._store, Namespace.GROUPS):
            if isinstance(stored, DataDamagedError):
                _log.warning("%s", stored)
                self._damaged[name] = stored
            else:
                self._restore(name, stored)

    def _restore(self, name: str, stored: bytes) -> None:
        """Take a group from the store; one that this version no longer accepts is left where it is."""
        try:
            self._grants[name] = check(admin_pb2.Group.FromString(stored))
        except (DecodeError, KaasError) as error:
            _log.warning("group %s in the store cannot be used: %s", name, error)


def _not_found(name: str) -> GroupNotFoundError:
    """Return the error for a group that there is not, or that the caller may not use."""
    return GroupNotFoundError(f"there is no group {shown(name)}", {"group": name})
