"""Files of compiled code: whole or not there, bounded, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kaasd.devices.code_directory import CodeDirectory, CodeDirectoryError

HEAD_BYTES = 32


def test_what_was_put_is_found_by_all(tmp_path: Path) -> None:
    directory = CodeDirectory(tmp_path / "new" / "code")
    assert directory.get("a") is None
    directory.put("a", b"code")
    assert [each.get("a") for each in (directory, CodeDirectory(tmp_path / "new" / "code"))] == [b"code", b"code"]
    assert (tmp_path / "new" / "code").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "code" / "a").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:-1] + b"x"])
def test_what_is_damaged_is_dropped(tmp_path: Path, damage: type[bytes]) -> None:
    directory = CodeDirectory(tmp_path)
    directory.put("a", b"code")
    (tmp_path / "a").write_bytes(damage((tmp_path / "a").read_bytes()))
    assert directory.get("a") is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_under_another_name_is_none(tmp_path: Path) -> None:
    directory = CodeDirectory(tmp_path)
    directory.put("a", b"code")
    (tmp_path / "a").rename(tmp_path / "b")
    assert directory.get("b") is None


def test_what_nobody_has_used_for_longest_goes_first(tmp_path: Path) -> None:
    directory = CodeDirectory(tmp_path, 100_000)
    for age, key in enumerate("cab"):
        directory.put(key, bytes(30_000))
        os.utime(tmp_path / key, (age, age))
    assert directory.get("c") == bytes(30_000)
    directory.put("d", bytes(30_000))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d"]
    directory.put("e", bytes(80_000))  # More than is left of the limit when the others have gone.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d"]


def test_several_write_at_once(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom kaasd.devices.code_directory import CodeDirectory\n"
        "directory = CodeDirectory(Path(sys.argv[1]), 3 << 20)\n"
        "for number in range(50):\n"
        "    for key in 'abcdef':\n"
        "        directory.put(key, key.encode() * (400_000 + number))\n"
        "        found = directory.get(key)\n"
        "        assert found is None or set(found) == set(key.encode()), key\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert {path.name for path in tmp_path.iterdir()} <= set("abcdef")


def test_a_disk_that_takes_nothing_is_no_failure(tmp_path: Path) -> None:
    directory = CodeDirectory(tmp_path / "code")
    (tmp_path / "code").rmdir()
    directory.put("a", b"code")
    assert directory.get("a") is None


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(CodeDirectoryError, match="other users may write there"):
        CodeDirectory(tmp_path)


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(CodeDirectoryError, match="belongs to user"):
        CodeDirectory(tmp_path)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CodeDirectoryError, match="file: File exists"):
        CodeDirectory(tmp_path / "file")
