"""A table that came by folder is the one that a connection gives, and no folder that is not whole becomes one.

The program of a folder runs as it runs on a board: in a process that knows nothing of the project but what it brings.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aap_hw.device.board import MEASURED_ONCE
from aap_hw.device.boards import Boards
from aap_hw.device.profile import DeviceProfile
from aap_hw.errors import UserError
from aap_hw.lut import networks as lut_networks
from aap_hw.lut.file import load_table
from aap_hw.lut.journal import Journal
from aap_hw.lut.subject import Workload
from aap_hw.pack.folder import PROGRAM, Packed, require_new
from aap_hw.pack.profiles import Asked, Returned, _beside, pack_profile, unpack_profile
from aap_hw.pack.reported import ReportedDevice
from aap_hw.pack.run import Refused, digest_of, read_pack, require_this_machine
from tests.device import servers
from tests.lut import tiny
from tests.synthetic import write_table

DEVICE = tiny.device()


def asked(path: Path, networks: int = 2, profile: DeviceProfile = DEVICE.profile, **changes: Any) -> Asked:
    return Asked(replace(Workload("tiny", tiny.Tiny(), tiny.INPUT), **changes), profile, path, networks)


def command(folder: Path) -> list[str | Path]:
    return [sys.executable, folder / "run.py"]


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command(folder), cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module", autouse=True)
def few_networks() -> Iterator[None]:
    """The first networks never calibrate a table well enough, so that a second trip is needed if there are more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lut_networks, "FIRST_NETWORKS", 2)
        patch.setattr(lut_networks, "WELL_KNOWN", 0.0)
        yield


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """A pack that has not been anywhere yet."""
    folder = tmp_path_factory.mktemp("packed")
    made = pack_profile(asked(folder / "table.json"), folder / "pack", workers=1)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def returned(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack whose work is done."""
    folder = tmp_path_factory.mktemp("returned") / "pack"
    shutil.copytree(packed.folder, folder)
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def folder(returned: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    shutil.copytree(returned, tmp_path / "pack")
    return tmp_path / "pack"


def unpack(folder: Path, path: Path | None = None, networks: int = 2, **changes: Any) -> Returned:
    path = path or folder.with_name("table.json")
    return unpack_profile(asked(path, networks, **changes), folder, keep_others=False, workers=1)


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.slow
def test_table_that_came_by_folder_is_that_of_a_connection(returned: Path, tmp_path: Path) -> None:
    came = unpack(returned, tmp_path / "came.json")
    assert came.another is None
    by_connection = tiny.profile(tmp_path / "connected.json", networks=2)
    table = load_table(tmp_path / "came.json")
    assert {key: set(points) for key, points in table.points.items()} == {
        key: set(points) for key, points in by_connection.points.items()
    }
    assert table.device == by_connection.device
    assert table.measurement.keys() == by_connection.measurement.keys()
    assert [(v.network, v.plan, v.widths) for v in table.validation] == [
        (v.network, v.plan, v.widths) for v in by_connection.validation
    ]
    assert table.slowdowns.keys() == by_connection.slowdowns.keys()
    assert all(0 < point.latency_us < 1e5 for points in table.points.values() for point in points.values())
    dense_ms = table.dense_ms("tiny", tiny.INPUT)
    assert dense_ms is not None
    assert dense_ms < 100
    assert pack_profile(asked(tmp_path / "came.json"), tmp_path / "more", workers=1) is None
    assert not (tmp_path / "more").exists()


@pytest.mark.slow  # two trips
def test_second_trip_measures_more_networks_beside_known_ones(returned: Path, tmp_path: Path) -> None:
    shutil.copytree(returned, tmp_path / "trip")
    first = unpack(tmp_path / "trip", networks=3)
    assert first.table.dense_ms("tiny", tiny.INPUT) is not None, "the table can be used before"
    assert first.another is not None
    assert (first.another.folder, first.another.points) == (tmp_path / "trip-2", 0)
    names = [network["name"] for network in read_pack(tmp_path / "trip-2")["networks"]]
    assert names == ["dense", "calibration-0", "calibration-1", "calibration-2"]
    before = {entry.plan: entry.measured_us for entry in first.table.validation}
    assert run(tmp_path / "trip-2").returncode == 0
    second = unpack(tmp_path / "trip-2", tmp_path / "table.json", networks=3)
    assert second.another is None
    after = {entry.plan: entry.measured_us for entry in second.table.validation}
    assert after.keys() == {*names}
    assert {plan: after[plan] for plan in before} == pytest.approx(before, rel=1e-3)


def test_boards_and_folders_describe_a_device_alike(returned: Path) -> None:
    results = json.loads((returned / "results.json").read_text())
    with servers.board() as server:
        boards = Boards(DEVICE.profile.reached_by(f"rpc://127.0.0.1:{server.port}"))
        described = boards.describe()
        boards.close()
    assert ReportedDevice.of(results, DEVICE.profile, DEVICE.target).describe() == described


@pytest.mark.slow
def test_program_that_is_killed_goes_on_where_it_ended(packed: Packed, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    shutil.copytree(packed.folder, folder)
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / "results.json").exists() or not json.loads((folder / "results.json").read_text())["visits"]:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = json.loads((folder / "results.json").read_text())
    assert not before["finished"]
    with pytest.raises(UserError, match=r"holds \d+ of 28 points and 0 of 3 networks: its work is half done; run"):
        unpack(folder)
    assert not folder.with_name("table.json").exists()
    assert run(folder).returncode == 0
    after = json.loads((folder / "results.json").read_text())
    known = len({(number, index) for number, index, *_ in before["visits"]})
    assert 0 < known < 28
    assert after["visits"][: len(before["visits"])] == before["visits"]
    again = run(folder)
    assert (again.returncode, again.stdout.splitlines()[0]) == (
        0, "everything was timed before; delete results.json to begin anew",
    )  # fmt: skip
    assert unpack(folder).table.dense_ms("tiny", tiny.INPUT) is not None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def outside(folder: Path) -> None:
    def change(pack: dict[str, Any]) -> None:
        pack["sha256"]["../elsewhere"] = "0" * 64
        pack["digest"] = digest_of(pack)

    edited(folder / "pack.json", change)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: flip(folder / "points_0.so.gz"), "points_0.so.gz is not what was packed"),
        (lambda folder: flip(folder / "aap_hw" / "device" / "timing.py"), "timing.py is not what was packed"),
        (lambda folder: (folder / "network_1.so.gz").unlink(), "network_1.so.gz (No such file or directory)"),
        (lambda folder: edited(folder / "pack.json", lambda p: p["about"].update(model="m")), "its checksum differs"),
        (lambda folder: (folder / "pack.json").write_text('{"schema_version": 1'), "damaged or cut short"),
        (lambda folder: edited(folder / "pack.json", lambda p: p.update(schema_version=2)), "has version 2 and this"),
        (lambda folder: (folder / "pack.json").unlink(), "pack? "),
        (outside, "which is outside of its folder"),
    ],
)  # fmt: skip
def test_folder_that_did_not_arrive_whole_is_refused_before_anything_of_it_is_loaded(
    folder: Path, damage: Callable[[Path], Any], sentence: str
) -> None:
    damage(folder)
    with pytest.raises(Refused) as refused:
        read_pack(folder)
    assert sentence.strip() in str(refused.value)
    with pytest.raises(UserError) as told:
        unpack(folder)
    assert str(told.value) == str(refused.value)
    assert not folder.with_name("table.json").exists()


def test_program_without_what_it_imports_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(PROGRAM)
    # Without the packages of this environment, which has ours.
    done = subprocess.run([sys.executable, "-IS", tmp_path / "run.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "refused: the folder is not whole (No module named 'aap_hw'); copy it again\n"


def test_python_that_tvm_has_no_package_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit) as ended:
        exec(PROGRAM, {})
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("refused: TVM needs Python 3.10 or later, and this is Python 3.9;")


def test_program_says_in_one_line_why_it_does_nothing(packed: Packed, tmp_path: Path) -> None:
    shutil.copytree(packed.folder, tmp_path / "pack")
    flip(tmp_path / "pack" / "reference.so.gz")
    done = run(tmp_path / "pack")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("refused: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"machine": "riscv64"}, "the pack is for riscv64 and this machine is"),
        ({"cpu_features": ["fpu", "amx_int9"]}, "compiled for a CPU with amx_int9"),
        (
            {"tvm": "0.26.0", "tvm_ffi": "0.1.13"},
            r"compiled with TVM 0\.26\.0 and this is TVM .* apache-tvm==0\.26\.0 apache-tvm-ffi==0\.1\.13$",
        ),
    ],
)
def test_folder_for_another_machine_is_refused(packed: Packed, change: dict[str, Any], sentence: str) -> None:
    requires = read_pack(packed.folder)["requires"]
    require_this_machine(requires)
    with pytest.raises(Refused, match=sentence):
        require_this_machine({**requires, **change})


def of_another(results: dict[str, Any]) -> None:
    results["pack"]["about"]["model"] = "other"
    results["pack"]["digest"] = digest_of(results["pack"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (of_another, "holds the results of another pack"),
        (lambda r: r["pack"]["about"].update(model="other"), "its pack is not what was packed"),
        (lambda r: r.update(visits=r["visits"][:3]), "does not hold what its pack asks for"),
        (lambda r: r["visits"].append([7, 0, 1.0, 0.0, 1, 1.0]), "does not hold what its pack asks for"),
        (lambda r: r["networks"].pop("dense"), "does not hold what its pack asks for"),
        (lambda r: r["visits"][0].__setitem__(2, -1.0), r"damaged at \$.visits\[0\]\[2\]"),
        (lambda r: r["visits"][0].__setitem__(2, float("nan")), "damaged or cut short"),
        (lambda r: r.pop("facts"), "'facts' is a required property"),
        (lambda r: r["facts"].update(tvm="0.26.0"), r"results are of TVM 0\.26\.0"),
        (lambda r: r["facts"].update(cpu="Cortex-A53"), "for this machine's CPU, .*results are of another: Cortex-A53"),
    ],
)  # fmt: skip
def test_results_that_are_damaged_or_of_something_else_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], sentence: str
) -> None:
    edited(folder / "results.json", change)
    with pytest.raises(UserError, match=sentence):
        unpack(folder)
    assert not folder.with_name("table.json").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "other"}, r"packed for another model \('tiny' there, 'other' here\)"),
        ({"floats": ("first",)}, "packed for another --float-layer"),
        ({"profile": DEVICE.profile.model_copy(update={"threads": 2})}, "packed for another device profile_hash"),
        ({"module": tiny.Tiny(kernel=3)}, "holds the kernel 'conv2d .*', which the model has not any more; pack again"),
    ],
)
def test_folder_is_of_the_command_that_packed_it(returned: Path, tmp_path: Path, change: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        unpack(returned, tmp_path / "table.json", **change)
    assert not (tmp_path / "table.json").exists()


def make_second_trip(folder: Path) -> None:
    pack = json.loads((folder / "pack.json").read_text())
    pack["libraries"] = []
    pack["digest"] = digest_of(pack)
    (folder / "pack.json").write_text(json.dumps(pack))
    edited(folder / "results.json", lambda r: r.update(pack=pack, visits=[]))


def test_results_that_are_refused_leave_a_table_of_another_device_where_it_is(folder: Path) -> None:
    path = write_table(folder.with_name("table.json"), name="another")
    before = path.read_bytes()

    def assert_refused(sentence: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=sentence):
            unpack_profile(asked(path, **changes), folder, keep_others=True, workers=1)
        assert path.read_bytes() == before
        assert {each.name for each in path.parent.iterdir()} <= {"pack", path.name, f"{path.name}.journal"}

    assert_refused("which the model has not any more; pack again", module=tiny.Tiny(kernel=3))
    journal = Journal(path.with_name(f"{path.name}.journal"), DEVICE.describe().as_json())
    assert_refused("another process is profiling into")
    journal.close()
    make_second_trip(folder)
    assert_refused("is a second trip, and the table of the first is not at .*; restore it")


def test_times_of_an_emulated_board_are_none_and_need_no_second_trip(folder: Path) -> None:
    edited(folder / "results.json", lambda r: r["facts"].update(emulated=True))
    done = unpack(folder, networks=3)
    assert done.another is None
    profile = DEVICE.profile.model_copy(update={"measure": MEASURED_ONCE})
    assert (done.table.device["provenance"], done.table.device["profile_hash"]) == ("emulated", profile.profile_hash)
    assert "governor" not in done.table.measurement
    # What was compiled before anybody knew.
    assert done.table.measurement["copies"] == DEVICE.profile.measure.copies


def test_pack_is_not_written_over_anything(packed: Packed, tmp_path: Path) -> None:
    before = sorted(packed.folder.rglob("*"))
    with pytest.raises(UserError, match="exists already; name a new folder, or delete it"):
        pack_profile(asked(tmp_path / "table.json"), packed.folder)
    assert sorted(packed.folder.rglob("*")) == before


def test_folder_that_a_pack_cannot_replace_is_refused_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".", tmp_path, "/proc/self/cwd"):
        with pytest.raises(UserError, match=r"cannot be replaced; name a new folder, such as .*pack"):
            require_new(Path(folder))
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    Path("dangling").symlink_to("nowhere")
    for folder, sentence in (("link", "is a link"), ("dangling", "exists already"), ("..", "exists already")):
        with pytest.raises(UserError, match=sentence):
            require_new(Path(folder))
    require_new(Path("empty"))


@pytest.mark.parametrize(
    ("folder", "beside"),
    [("other", "other-2"), ("trip-2", "trip-4"), (".", "{here}/trip-4"), ("trip-2/inner/..", "{here}/trip-4")],
)
def test_next_trip_is_packed_beside_the_folder_however_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, beside: str
) -> None:
    (tmp_path / "trip-2" / "inner").mkdir(parents=True)
    (tmp_path / "trip-3").mkdir()
    monkeypatch.chdir(tmp_path / "trip-2" if folder == "." else tmp_path)
    assert _beside(Path(folder)) == Path(beside.format(here=tmp_path))
