"""Proves that a journal keeps every whole line whatever happened to the last one, and refuses what is not its own."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aap_hw.errors import UserError
from aap_hw.files import WriteError
from aap_hw.lut.journal import Entry, Journal
from aap_hw.lut.table import LatencyPoint
from tests.lut.tables import keys, latencies, measured_points

IDENTITY: dict[str, Any] = {"name": "board-1", "target": {"kind": "llvm", "mattr": ["+neon"]}, "threads": 2}
entries_of_any_size = st.lists(
    st.builds(Entry, keys, measured_points, latencies, st.sampled_from([None, "192.0.2.1:9090"])), max_size=6
)


def written(path: Path, entries: list[Entry]) -> None:
    journal = Journal(path, IDENTITY)
    for entry in entries:
        journal.record(entry)
    journal.close()


def read(path: Path) -> list[Entry]:
    journal = Journal(path, IDENTITY)
    journal.close()
    return journal.entries


@pytest.fixture
def path(tmp_path: Path, entries: list[Entry]) -> Path:
    written(tmp_path / "journal", entries)
    return tmp_path / "journal"


@pytest.fixture
def entries() -> list[Entry]:
    from tests.lut.tables import KEY

    return [Entry(KEY, LatencyPoint((8 * i, 16), 1.25 * i, 0.5, 20), 80.5) for i in range(1, 5)]


@settings(max_examples=40)
@given(entries_of_any_size, st.data())
def test_all_whole_lines_survive_a_death_at_any_byte(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journals") / "journal"
    written(path, entries)
    content = path.read_bytes() if entries else b""
    kept = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:kept])
    survivors = max(0, content[:kept].count(b"\n") - 1)
    assert read(path) == entries[:survivors]
    written(path, entries[survivors:])
    assert (path.read_bytes() if entries else b"") == content
    assert not entries or read(path) == entries


def test_each_point_is_on_disk_before_the_next(
    tmp_path: Path, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, on_disk = os.fsync, list[str]()

    def fsync(descriptor: int) -> None:
        real(descriptor)
        on_disk.append((tmp_path / "journal").read_text())

    monkeypatch.setattr("aap_hw.jsonlines.os.fsync", fsync)
    journal = Journal(tmp_path / "journal", IDENTITY)
    for count, entry in enumerate(entries, 1):
        journal.record(entry)
        lines = on_disk[-1].splitlines()
        assert len(lines) == 1 + count
        assert json.loads(lines[-1])["point"] == [8 * count, 16, 1.25 * count, 0.5, 20]


def test_another_identity_is_refused_by_what_differs_and_the_file_kept(path: Path) -> None:
    before = path.read_bytes() + b'{"kernel": "cut sho'
    path.write_bytes(before)
    with pytest.raises(UserError, match="an interrupted profile with another cpu, threads; finish it"):
        Journal(path, {**IDENTITY, "threads": 4, "cpu": "x"})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "",
        "[]",
        "3",
        "\x00\x00",
        '{"kernel": "conv2d 7x7 float32 batch=1", "point": [8, 8, 1.0, 0.1, 20]}',
        '{"kernel": "some kernel", "point": [8, 8, 1.0, 0.1, 20], "reference_us": 80.0}',
        '{"kernel": "conv2d 7x7 float32 batch=1", "point": [8, 8, 1.0, 0.1], "reference_us": 80.0}',
        '{"kernel": "conv2d 7x7 float32 batch=1", "point": [8, 8, "x", 0.1, 20], "reference_us": 80.0}',
        '{"kernel": "conv2d 7x7 float32 batch=1", "point": [8, 8, NaN, 0.1, 20], "reference_us": 80.0}',
        '{"kernel": "conv2d 7x7 float32 batch=1", "point": [8, 8, 1.0, 0.1, 20], "reference_us": 0}',
        '{"kernel": "conv2d 7x7 float32 batch=1", "point": [8, 8, 1.0, 0.1, 20], "reference_us": null}',
        '{"kernel": 7, "point": [8, 8, 1.0, 0.1, 20], "reference_us": 80.0}',
    ],
)
def test_damaged_line_that_is_not_the_last_is_refused_and_the_file_kept(path: Path, line: str) -> None:
    assert_refused_with_line(path, 2, line)


@pytest.mark.parametrize("line", ["{", "", "[]", "3", "\x00\x00"])
def test_damaged_header_is_refused_and_the_file_kept(path: Path, line: str) -> None:
    assert_refused_with_line(path, 0, line)


def assert_refused_with_line(path: Path, position: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[position] = line
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"is damaged .* delete it to begin anew") as refusal:
        Journal(path, IDENTITY)
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == before


def test_journal_without_points_leaves_no_file(tmp_path: Path) -> None:
    Journal(tmp_path / "deep" / "journal", IDENTITY).close()
    assert list((tmp_path / "deep").iterdir()) == []


def test_emptied_journal_is_held_until_it_is_closed_and_gone_then(path: Path) -> None:
    journal = Journal(path, IDENTITY)
    journal.empty()
    with pytest.raises(UserError, match="another process is profiling into"):
        Journal(path, IDENTITY)
    journal.close()
    assert not path.exists()


def test_emptied_journal_of_a_process_that_was_killed_is_taken_up_as_a_new_one(
    path: Path, entries: list[Entry]
) -> None:
    path.write_bytes(b"")
    written(path, entries)
    assert read(path) == entries


def test_line_that_a_full_disk_has_no_room_for_is_a_sentence_and_leaves_the_journal_as_it_was(
    path: Path, entries: list[Entry]
) -> None:
    """The room is that of a file size limit, at which the system writes a part of a line before it refuses."""
    before = path.read_bytes()
    journal = Journal(path, IDENTITY)
    ignored, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"cannot write .*journal: File too large"):
            journal.record(entries[0])
        assert path.read_bytes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    journal.close()
    assert path.read_bytes() == before
    assert journal.entries == entries


def test_second_process_on_a_journal_is_refused(path: Path, entries: list[Entry]) -> None:
    first = Journal(path, IDENTITY)
    before = path.read_bytes()
    with pytest.raises(UserError, match="another process is profiling into"):
        Journal(path, IDENTITY)
    assert path.read_bytes() == before
    first.close()
    assert read(path) == entries


@pytest.mark.parametrize("place", ["a file/journal", "a file/deep/journal", "a folder"])
def test_path_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "a folder").mkdir()
    with pytest.raises(UserError, match=r"cannot write .* choose a folder .*\(--out of 'aap-hw profile'\)"):
        Journal(tmp_path / place, IDENTITY)
