"""Groups: who calls are for, and what each is granted. All executors of a cluster know them."""

from __future__ import annotations

import json
from dataclasses import asdict

from kaas_client.ray import table
from kaas_core.errors import GroupNotFoundError
from kaas_core.violations import shown
from kaasd.scheduling import DEFAULT_GROUP, Group


def write(group: Group) -> None:
    """Have the cluster know a group, in place of what it knew of it."""
    table.put(table.Kind.GROUP, group.name.encode(), json.dumps(asdict(group)).encode())


def read(name: str) -> Group:
    """Return a group. Raises ``GroupNotFoundError``."""
    content = table.get(table.Kind.GROUP, name.encode())
    if content is None:
        raise GroupNotFoundError(
            f"the cluster has no group {shown(name)}; make it with kaas_client.ray.set_group", {"group": name}
        )
    return Group(**json.loads(content))


def check(name: str) -> None:
    """Raise ``GroupNotFoundError`` where there is no such group."""
    if name != DEFAULT_GROUP:
        read(name)


def read_all() -> list[Group]:
    """Return the groups that were made."""
    rows = table.get_all(table.Kind.GROUP, table.keys(table.Kind.GROUP))
    return [Group(**json.loads(content)) for content in rows.values()]
