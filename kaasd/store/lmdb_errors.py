"""The one place where an error of LMDB becomes one of ours."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import lmdb

from kaas_core.errors import InternalError, KaasError, QueueFullError, StoreFullError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_BELOW_BYTES = 64 << 20
"""Some chunks: a full disk cuts a write short, which LMDB calls EIO, and what it had taken is free again afterwards."""


def translate(error: lmdb.Error, path: Path) -> KaasError:
    """Return what a caller should see of ``error``, met in the environment at ``path``; it becomes the cause."""
    kind: type[KaasError]
    code = getattr(error, "code", 0)  # py-lmdb's own errors, which LMDB does not know, have none
    match error:
        case lmdb.MapFullError():
            kind, text = StoreFullError, "the store has no room left that open snapshots do not hold"
        case lmdb.ReadersFullError():
            kind, text = QueueFullError, "too many snapshots of the store are open"
        case _ if code in _NO_SPACE or (code == errno.EIO and _is_full(path)):
            kind, text = StoreFullError, "the file system below the store is full"
        case lmdb.CorruptedError() | lmdb.PageNotFoundError() | lmdb.InvalidError() | lmdb.VersionMismatchError():
            kind, text = InternalError, f"{path} is damaged or no LMDB environment that this version can read"
        case _:
            kind, text = InternalError, f"LMDB failed on {path}"
    translated = kind(f"{text} ({error})")
    translated.__cause__ = error
    return translated


def _is_full(path: Path) -> bool:
    return shutil.disk_usage(path).free < _FULL_BELOW_BYTES
