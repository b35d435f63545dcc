from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.audit import AuditFile, text_hmac


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def numbered(path: Path) -> dict[str, list[int]]:
    """File name to the numbers of the lines in it."""
    files = sorted(path.parent.glob(f"{path.name}*"))
    return {file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}


def test_files_are_replaced_by_size_and_the_oldest_go(path: Path) -> None:
    file = AuditFile(path, max_bytes=10, keep=2, fsync=True)
    for number in range(10, 22):
        file.append(b"%d\n" % number)
    file.close()
    name = path.name
    assert numbered(path) == {name: [19, 20, 21], f"{name}.1": [16, 17, 18], f"{name}.2": [13, 14, 15]}


def test_nothing_old_is_kept_when_none_is_wanted(path: Path) -> None:
    file = AuditFile(path, max_bytes=10, keep=0, fsync=False)
    for number in range(10, 15):
        file.append(b"%d\n" % number)
    file.close()
    assert numbered(path) == {path.name: [13, 14]}


def test_a_line_that_is_larger_than_a_file_is_written_all_the_same(path: Path) -> None:
    file = AuditFile(path, max_bytes=10, keep=3, fsync=False)
    for number in (1, 10**20, 2):
        file.append(b"%d\n" % number)
    file.close()
    assert sorted(chain.from_iterable(numbered(path).values())) == [1, 2, 10**20]


#: Files of this process can have 100 bytes: a write beyond it writes less, then fails. Its own process, as the limit
#: would hold for the file that the tests' output goes to as well.
_ON_A_SMALL_DISK = """
import resource, sys
from pathlib import Path
from server.audit import AuditFile

path = Path(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
file = AuditFile(path, max_bytes=1 << 20, keep=1, fsync=False)
line = b'"%s"\\n' % (b"x" * 60)
file.append(line)
for _ in range(3):
    try:
        file.append(line)  # the first 37 bytes fit
        sys.exit("a line was taken that does not fit")
    except OSError:
        pass
assert path.read_bytes() == line
file.append(b"1\\n")  # and it goes on once there is room
file.close()
assert path.read_bytes() == line + b"1\\n"
"""


def test_a_line_that_does_not_fit_leaves_no_part_of_it(path: Path) -> None:
    command = [sys.executable, "-c", _ON_A_SMALL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_link_is_not_followed(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(OSError):
        AuditFile(path, 10, 1, fsync=False)
    assert not path.with_name("elsewhere").exists()


def test_a_failed_rotation_is_an_error_and_not_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AuditFile(path, max_bytes=3, keep=1, fsync=False)
    file.append(b"1\n")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
        with pytest.raises(OSError):
            file.append(b"2\n")
    file.append(b"3\n")
    file.close()
    assert numbered(path) == {path.name: [3], f"{path.name}.1": [1]}


def test_a_disk_that_does_not_sync_takes_the_line_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AuditFile(path, max_bytes=1000, keep=1, fsync=True)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no medium")))
        with pytest.raises(OSError):
            file.append(b"1\n")
    file.close()
    assert path.read_bytes() == b""


@given(st.text(max_size=50), st.text(max_size=50))
def test_equal_texts_have_equal_hashes_and_others_do_not(one: str, other: str) -> None:
    key = b"k" * 32
    assert (text_hmac(key, one) == text_hmac(key, other)) == (one == other)
    assert text_hmac(key, one) != text_hmac(b"l" * 32, one)
    assert len(text_hmac(key, one)) == 64
