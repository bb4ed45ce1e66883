"""A file from `write_atomic` is whole at every moment; every failure is one sentence that names the path."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.errors import UserError, closest
from aap_hw.files import read_text, sha256_of, write_atomic

WRITES_FOREVER = """
import sys
from aap_hw.files import write_atomic
while True:
    for letter in "ab":
        write_atomic(sys.argv[1], letter * 3_000_000)
"""

DIES_BEFORE_THE_DATA_IS_SAFE = """
import os, signal, sys
from aap_hw import files
files.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomic(sys.argv[1], "new")
"""


# Lone surrogates are no text that a file can hold.
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_written_is_read_back(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        write_atomic(path, text)
        assert path.read_bytes() == text.encode()
        assert read_text(path, "table") == text
        assert sha256_of(path) == hashlib.sha256(text.encode()).hexdigest()
        assert [p.name for p in Path(folder).iterdir()] == ["f"]


def test_process_killed_while_writing_leaves_the_old_contents(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("old")
    child = subprocess.run([sys.executable, "-c", DIES_BEFORE_THE_DATA_IS_SAFE, path], check=False)
    assert child.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_process_killed_at_any_time_leaves_one_whole_version(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for delay_s in (0.013, 0.029, 0.041, 0.057, 0.071, 0.083):
        path.write_text("")
        child = subprocess.Popen([sys.executable, "-c", WRITES_FOREVER, path])
        try:
            started = time.monotonic()
            while not path.stat().st_size:
                assert time.monotonic() - started < 30, "the child never wrote"
                time.sleep(0.002)
            time.sleep(delay_s)
        finally:
            child.kill()
            child.wait()
        content = path.read_text()
        assert content in {"a" * 3_000_000, "b" * 3_000_000}


def test_permissions_follow_the_umask_for_a_new_file_and_the_old_file_otherwise(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o604)
    write_atomic(tmp_path / "new", b"again")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604


def test_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_unwritable_place_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    # A regular file or a folder in the way stops root too, whom permissions do not.
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (
        tmp_path / "file" / "x.json",
        tmp_path / "folder",
        tmp_path / "absent" / "x",
        Path("/proc/x"),
    ):
        with pytest.raises(UserError) as caught:
            write_atomic(path, "data")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_unreadable_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"ab\xff\xd8")
    with pytest.raises(UserError, match=r"latency table .*picture.* byte 2 is not UTF-8"):
        read_text(tmp_path / "picture", "latency table")
    with pytest.raises(UserError, match=r"latency table .*absent.*No such file"):
        read_text(tmp_path / "absent", "latency table")
    with pytest.raises(UserError, match=r"directory"):
        read_text(tmp_path, "latency table")
    with pytest.raises(UserError, match=r"absent"):
        sha256_of(tmp_path / "absent")


def test_spelling_hint_names_the_nearest_word_or_nothing() -> None:
    assert closest("ThreadS", ["name", "threads"]) == "; did you mean 'threads'?"
    assert closest("zzz", ["name", "threads"]) == ""
    assert closest("x", []) == ""


def test_a_device_or_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, "text")
    assert os.read(reader, 10) == b"text"
    assert pipe.is_fifo()
    os.close(reader)
