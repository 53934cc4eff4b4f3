"""The one place where an error of LMDB becomes one of ours."""

from __future__ import annotations

import errno
from pathlib import Path

import lmdb

from kaasd.errors import InternalError, KaasError, QueueFullError, StoreFullError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def translate(error: lmdb.Error, path: Path) -> KaasError:
    """Return what a caller should see of ``error``, met in the environment at ``path``; it becomes the cause."""
    kind: type[KaasError]
    match error:
        case lmdb.MapFullError():
            kind, text = StoreFullError, "the store has no room left that open snapshots do not hold"
        case lmdb.ReadersFullError():
            kind, text = QueueFullError, "too many snapshots of the store are open"
        case lmdb.Error() if error.code in _NO_SPACE:
            kind, text = StoreFullError, "the file system below the store is full"
        case lmdb.CorruptedError() | lmdb.PageNotFoundError() | lmdb.InvalidError() | lmdb.VersionMismatchError():
            kind, text = InternalError, f"{path} is damaged or no LMDB environment that this version can read"
        case _:
            kind, text = InternalError, f"LMDB failed on {path}"
    translated = kind(f"{text} ({error})")
    translated.__cause__ = error
    return translated
