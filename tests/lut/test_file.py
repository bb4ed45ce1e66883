"""Proves that a table's file holds the table, reads well in a comparison, and that a damaged one is never taken.

Whatever is wrong with a file is said in one sentence that names the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.lut.calibrating import Slowdown
from aap_hw.lut.file import dump_table, load_table, save_table
from aap_hw.lut.table import LatencyPoint, LatencyTable, NetworkName, Validation
from tests.lut.tables import KEY, empty, tables


@pytest.fixture
def table() -> LatencyTable:
    made = empty()
    for width_in in (8, 16):
        for width_out in (8, 16):
            made.add(KEY, LatencyPoint((width_in, width_out), 1.5 * width_in + width_out, 0.25, 20))
    made.validation.append(Validation("net", Inputs.of((3, 8, 8)), "dense", {"a": 8, "b": 16}, 40.5, 41.25))
    made.slowdowns[NetworkName("net", Inputs.of((3, 8, 8)))] = Slowdown(40.0, 41.0, 0.03)
    return made


@settings(max_examples=50)
@given(tables())
def test_loading_what_was_saved_gives_the_table(tmp_path_factory: pytest.TempPathFactory, table: LatencyTable) -> None:
    path = tmp_path_factory.mktemp("tables") / "table.json"
    save_table(table, path)
    assert load_table(path) == table
    assert dump_table(load_table(path)) == path.read_text("utf-8")


@settings(max_examples=50)
@given(tables(), st.randoms())
def test_text_has_sorted_keys_and_one_point_a_row_whatever_the_order_of_measuring(
    table: LatencyTable, random: Any
) -> None:
    shuffled = LatencyTable(table.device, table.measurement, validation=table.validation, slowdowns=table.slowdowns)
    points = [(key, point) for key, of_key in table.points.items() for point in of_key.values()]
    random.shuffle(points)
    for key, point in points:
        shuffled.add(key, point)
    text = dump_table(table)
    assert dump_table(shuffled) == text

    def assert_sorted(value: Any) -> None:
        if isinstance(value, dict):
            # Kernels are in the order of their keys' parts, which for sizes is the order of the numbers.
            assert list(value) == sorted(value) or value is document["kernels"]
            for inner in value.values():
                assert_sorted(inner)

    document = json.loads(text)
    assert_sorted(document)
    assert [str(key) for key in sorted(table.points)] == list(document["kernels"])
    rows = re.findall(r"^   \[(\d+), (\d+), [^\[\]]*\],?$", text, re.MULTILINE)
    assert len(rows) == len(table)
    for kernel in document["kernels"].values():
        widths = [row[:2] for row in kernel["points"]]
        assert widths == sorted(widths)


def test_a_new_point_is_one_new_line(table: LatencyTable) -> None:
    before = dump_table(table).splitlines()
    table.add(KEY, LatencyPoint((8, 12), 20.123456, 0.1, 20))
    after = dump_table(table).splitlines()
    assert len(after) == len(before) + 1
    (new,) = set(after) - set(before)
    assert new == "   [8, 12, 20.12, 0.1, 20],"


def test_precision_is_written_of_networks_that_are_not_in_float32(table: LatencyTable, tmp_path: Path) -> None:
    before = dump_table(table)
    assert "precision" not in before
    (entry,), (name,) = table.validation, table.slowdowns
    table.validation.append(replace(entry, measured_us=11.0, precision="int8"))
    table.slowdowns[replace(name, precision="int8")] = Slowdown(10.0, 11.0, 0.02)
    save_table(table, tmp_path / "table.json")
    assert load_table(tmp_path / "table.json") == table
    new = [line.strip().rstrip(",") for line in dump_table(table).splitlines() if '"precision": "int8"' in line]
    assert [json.loads(line).get("measured_us") for line in new] == [11.0, 11.0]
    # What was there is as it was, line by line.
    kept = [line.rstrip(",") for line in dump_table(table).splitlines() if "int8" not in line]
    assert kept == [line.rstrip(",") for line in before.splitlines()]


def test_every_cut_off_file_is_refused(table: LatencyTable, tmp_path: Path) -> None:
    path, text = tmp_path / "table.json", dump_table(table)
    for length in range(0, len(text.rstrip()), 7):
        path.write_text(text[:length])
        with pytest.raises(UserError, match=r"damaged or cut short .* restore it or profile the device again"):
            load_table(path)


def set_at(*where: str | int) -> Callable[[Any, Any], None]:
    def change(document: Any, value: Any) -> None:
        *path, last = where
        for step in path:
            document = next(iter(document.values())) if step == "*" else document[step]
        if value is None:
            del document[last]
        else:
            document[last] = value

    return change


POINT = ("kernels", "*", "points", 1)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (set_at(*POINT, 2), float("nan")),
        (set_at(*POINT, 2), float("inf")),
        (set_at(*POINT, 2), -1.0),
        (set_at(*POINT, 2), 0),
        (set_at(*POINT, 2), 10**400),
        (set_at(*POINT), [8, 8, 3.0, 0.1, 20]),  # the widths of the point before it
        (set_at(*POINT, 2), "3"),
        (set_at(*POINT, 3), -0.1),
        (set_at(*POINT, 3), float("nan")),
        (set_at(*POINT, 0), 0),
        (set_at(*POINT, 0), 8.5),
        (set_at(*POINT, 1), True),
        (set_at(*POINT, 4), 0),
        (set_at(*POINT), [8, 16, 3.0, 0.1]),
        (set_at(*POINT), [8, 16, 3.0, 0.1, 20, 1]),
        (set_at("kernels", "*", "points"), []),
        (set_at("kernels", "*", "extra"), 1),
        (set_at("kernels", "*", "points"), None),
        (set_at("kernels", "conv2d of some kind"), {"points": [[8, 8, 1.0, 0.0, 20]]}),
        (set_at("kernels"), []),
        (set_at("kernels"), None),
        (set_at("device", "threads"), 0),
        (set_at("device", "name"), ""),
        (set_at("device", "provenance"), "guessed"),
        (set_at("device", "cpu"), None),
        (set_at("device", "colour"), "red"),
        (set_at("measurement", "reference_us"), 0),
        (set_at("measurement", "reference_us"), float("nan")),
        (set_at("validation", 0, "measured_us"), float("inf")),
        (set_at("validation", 0, "input"), [1, 3, 0, 8]),
        (set_at("validation", 0, "precision"), "fp32"),
        (set_at("slowdowns", 0, "precision"), "int4"),
        (set_at("validation"), None),
        (set_at("surplus"), {}),
        (set_at("schema_version"), True),
    ],
)
def test_wrong_content_is_refused_and_the_file_named(
    table: LatencyTable, tmp_path: Path, change: Callable[[Any, Any], None], value: Any
) -> None:
    path, document = tmp_path / "table.json", json.loads(dump_table(table))
    change(document, value)
    path.write_text(json.dumps(document))
    with pytest.raises(UserError) as refusal:
        load_table(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("version", [0, 3, 5, "4", None])
def test_another_version_is_refused_as_that(table: LatencyTable, tmp_path: Path, version: object) -> None:
    path, document = tmp_path / "table.json", json.loads(dump_table(table))
    document["schema_version"] = version
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=rf"not a latency table of version 4 \(schema_version is {version!r}\)"):
        load_table(path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{}", "[" * 100_000, "1" * 10_000, "\x00"])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_table(path)


@pytest.mark.parametrize("device", ['"x"', "{}"])
def test_a_device_that_says_nothing_is_what_is_named(table: LatencyTable, tmp_path: Path, device: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**json.loads(dump_table(table)), "device": json.loads(device)}))
    with pytest.raises(UserError, match=r"not valid at \$\.device: "):
        load_table(path)


def test_a_name_that_stands_twice_is_refused(table: LatencyTable, tmp_path: Path) -> None:
    path, text = tmp_path / "table.json", dump_table(table)
    path.write_text(text.replace(' "kernels": {', ' "kernels": {}, "kernels": {', 1))
    with pytest.raises(UserError, match=r"is damaged \('kernels' stands there twice\)"):
        load_table(path)


def test_number_too_large_for_a_float_is_refused(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(dump_table(table).replace("[8, 16, 28.0", "[8, 16, 1e999"))
    with pytest.raises(UserError, match="a latency that is not a number in 'conv2d 7x7"):
        load_table(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the latency table"):
        load_table(tmp_path / "none.json")
