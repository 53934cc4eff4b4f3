#!/usr/bin/env bash
# LMDB 0.9.36 cannot delete on a full disk, and calls a write that was cut short an input/output error.
#
# One would think: deleting frees pages, so that it works on a full disk; and a file that may not grow is ENOSPC, EDQUOT or EFBIG.
# Seen (lmdb 3.0.0 from PyPI, LMDB 0.9.36): each transaction writes the pages that it changes to others, and those that it frees can be
#   used by the next but one. Where these were taken from the end of the file, a delete fails like a put. A put whose first pages still
#   fit, and the rest do not, is EIO, because pwrite(2) returns less than it was given; LMDB does not try the rest, which would say why.
# Seen: the lock file is sparse. It is mapped, and has blocks only where it was written to: a reader's place in a hole of it needs a
#   block when the disk may be full.
# So: kaasd takes blocks for the next value and for deletes ahead (fallocate), and counts EIO as a full disk where there is little room.
# Source: LMDB's mdb.c, "mdb_page_flush": `rc = EIO; /* TODO: Use which error code? */`; "mdb_env_setup_locks": ftruncate.
#
# Needs Python with venv and pip on Linux; no privileges. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv > /dev/null
venv/bin/pip install --quiet --disable-pip-version-check lmdb==3.0.0 2> /dev/null

cat > full.py <<'PYTHON'
import errno
import os
import resource

import lmdb

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # Python ignores the signal
environment = lmdb.open("store", map_size=64 << 20, lib_version=0)


def attempt(work):
    """Do work in a transaction, and return the name of its error."""
    try:
        with environment.begin(write=True) as txn:
            work(txn)
    except lmdb.Error as error:
        return errno.errorcode[error.code]
    return "nothing"


def put(key, size):
    return attempt(lambda txn: txn.put(key, bytes(size)))


errors = [put(b"%d" % number, 300_000) for number in range(4)]
print("puts of 300 kB fail with:", *errors)
assert errors == ["nothing", "nothing", "nothing", "EIO"]

with environment.begin():  # a reader, so that freed pages are not used again meanwhile
    for number in range(1000):
        last = put(b"small%d" % number, 2000)
        if last != "nothing":
            break
    deleted = attempt(lambda txn: txn.delete(b"0"))
print("a delete of 300 kB fails with:", deleted)
assert deleted in ("EIO", "EFBIG")

status = os.stat("store/lock.mdb")
print("the lock file has", status.st_size, "bytes, and blocks for", status.st_blocks * 512)
assert status.st_blocks * 512 < status.st_size
PYTHON
venv/bin/python full.py
