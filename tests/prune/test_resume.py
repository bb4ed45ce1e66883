"""A run that was ended early goes on to the very result of one that was not, and says in one sentence why if it cannot.

Runs are ended by SIGKILL at chosen events and writes, by Ctrl-C, and by a disk that is full. Random moments are
``benchmarks/kills.py``.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aap_hw.errors import UserError
from aap_hw.files import WriteError
from aap_hw.models.origin import Origin
from aap_hw.prune import job as jobs
from aap_hw.prune.events import Event
from aap_hw.prune.job import Job, Limit, resume, samples_of, start
from aap_hw.prune.journal import read_journal
from aap_hw.prune.run import RunFolder
from aap_hw.train.sources import ImageSource
from tests import forked
from tests.disks import remount
from tests.prune.killed import result
from tests.prune.resumed import SETTINGS, TO_BUDGET
from tests.synthetic import PretendedDevice, few_images, table

ROOT = Path(__file__).parents[2]

# Forks for each moment, so that all is imported and ResNet-20 is traced once. A child dies at its n-th event or just
# before its n-th file is put in place, and another one goes on where it was.
DIES_AND_RESUMES = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import pytest, torch
torch.set_num_threads(1)
from aap_hw import files
from aap_hw.prune.job import resume, start
from aap_hw.train import data
from tests.disks import remount
from tests.prune.killed import in_child
from tests.prune.resumed import TO_ACCURACY, TO_BOTH, TO_BUDGET
from tests.synthetic import few_images, share_resnet20, table
few, latencies = few_images(), table()
share_resnet20(pytest.MonkeyPatch())
few = replace(few, train_images=few.train_images[:64], train_labels=few.train_labels[:64])
data.load_embedded = lambda: few

def deadly(real, moment):
    passed = 0
    def call(*arguments):
        nonlocal passed
        passed += 1
        if passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return call

for word in sys.argv[2:]:
    kind, what, moment = word.split("-")
    job, folder = {"budget": TO_BUDGET, "accuracy": TO_ACCURACY, "both": TO_BOTH}[kind], Path(sys.argv[1]) / word
    def begin():
        tell = deadly(lambda event: None, int(moment) if what == "event" else 0)
        files.os.replace = deadly(os.replace, int(moment) if what == "file" else 0)
        start(job, latencies, folder, lambda event: event.name == "step" or tell(event))
    died, _ = in_child(begin)
    assert died == (0 if moment == "0" else -9), word
    if moment != "0":
        assert not (folder / "run.json").exists()
        assert in_child(lambda: resume(folder))[0] == 0, word
"""


@pytest.mark.slow
def test_killed_at_any_event_and_before_any_file_it_resumes_to_the_same_weights_plan_and_figures(
    tmp_path: Path,
) -> None:
    moments = {
        # start, cut, epoch, epoch, round, cut, ... without steps, and files: table, configuration, one checkpoint an
        # epoch, the run.
        "budget": ["event-4", "event-7", "file-8"],
        "accuracy": ["event-9", "file-7"],
        # In the further round, before and after its first epoch.
        "both": ["event-6", "event-7"],
    }
    words = {kind: [f"{kind}-{way}" for way in ("event-0", *ways)] for kind, ways in moments.items()}
    done = forked.run(DIES_AND_RESUMES, [str(tmp_path), *(word for each in words.values() for word in each)], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for first, *others in words.values():
        undisturbed = result(tmp_path / first)
        assert len(undisturbed["rounds"]) >= 2
        for word in others:
            assert result(tmp_path / word) == undisturbed, word
            assert sorted(path.name for path in (tmp_path / word).iterdir()) == [
                "config.json", "environment.json", "events.jsonl", "journal.jsonl", "model.safetensors", "run.json",
                "summary.json", "table.json",
            ]  # fmt: skip


@pytest.fixture
def on_device(quick: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], PretendedDevice]:
    """Runs measure on a pretended device, each brought network with its factor."""

    def make(factors: list[float]) -> PretendedDevice:
        device = PretendedDevice(monkeypatch, table(), factors)
        monkeypatch.setattr(jobs, "device_of", lambda *_: (device, ""))
        return device

    return make


def stop_at(name: str) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if event.name == name:
            raise KeyboardInterrupt

    return on_event


def swallow_ctrl_c_at(name: str) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if event.name == name:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise RuntimeError("as TVM's compiler says") from None

    return on_event


def test_ctrl_c_that_a_library_makes_an_error_of_says_how_to_go_on(
    on_device: Callable[[list[float]], PretendedDevice], tmp_path: Path
) -> None:
    job = replace(TO_BUDGET, data=None)
    on_device([0.8])
    with pytest.raises(KeyboardInterrupt, match=r"'aap-hw prune --resume .*run' goes on with the run"):
        start(job, table(), tmp_path / "run", swallow_ctrl_c_at("measured"))
    assert resume(tmp_path / "run").summary["retrained"] is False


def test_latencies_that_were_measured_are_not_measured_again(
    on_device: Callable[[list[float]], PretendedDevice], tmp_path: Path
) -> None:
    job = replace(TO_BUDGET, data=None)
    on_device([1.1])
    with pytest.raises(KeyboardInterrupt, match=r"'aap-hw prune --resume .*run' goes on with the run"):
        start(job, table(), tmp_path / "run", stop_at("measured"))
    before = read_journal(tmp_path / "run")
    # Were the first plan tried again, it would be fast enough now.
    device = on_device([1.1, 1.1])
    events: list[Event] = []
    pruned = resume(tmp_path / "run", events.append)
    measured = [event.figures for event in events if event.name == "measured"]
    assert [each["budget_met"] for each in measured] == [False, True]
    assert measured[0]["measured_ms"] == before["round/1/attempt/1"]["measured_ms"]
    assert pruned.summary["dense_ms"] == before["dense/ms"]
    assert len(device.brought) == 1


@pytest.mark.parametrize("is_noted", [True, False])
def test_a_run_that_was_begun_without_its_device_goes_on_without_it(
    on_device: Callable[[list[float]], PretendedDevice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_noted: bool
) -> None:
    run, job = tmp_path / "run", replace(TO_BUDGET, data=None)
    monkeypatch.setattr(jobs, "device_of", lambda *_: (None, "nobody answers"))
    with pytest.raises(KeyboardInterrupt):
        start(job, table(), run, stop_at("cut"))
    before, journal = read_journal(run), run / "journal.jsonl"
    assert before["measures"] is False
    if not is_noted:  # by an earlier version
        journal.write_text("".join(line for line in journal.open() if '"measures"' not in line))
    device = on_device([1.1])
    events: list[Event] = []
    pruned = resume(run, events.append)
    assert events[0].figures["why_predicted"] == "the run was begun without x86, and goes on as it began"
    assert [event.name for event in events] == ["start", "cut", "round"]
    assert (pruned.summary["pruned_ms"], device.brought) == (None, [])
    after = read_journal(run)
    assert (after["measures"], after["round/1/plan"]) == (False, before["round/1/plan"])
    assert "dense/ms" not in after


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_resumed_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run that was begun, so there is nothing to resume"):
        resume(tmp_path)
    run = tmp_path / "run"
    finished = start(replace(TO_BUDGET, data=None), table(), run)
    assert finished.summary["device"] == "x86"
    with pytest.raises(UserError, match="is finished, so there is nothing to resume; look at it with 'aap-hw report'"):
        resume(run)
    (run / "run.json").unlink()
    for file, content, sentence in (
        ("config.json", "{", r"config\.json is damaged"),
        ("config.json", '{"data": null}', r"config\.json is damaged"),
        ("table.json", "{}", "is not a latency table of version"),
        ("journal.jsonl", "nonsense\n", r"journal\.jsonl is damaged in line 1"),
    ):
        before = (run / file).read_bytes()
        (run / file).write_text(content)
        with pytest.raises(UserError, match=sentence):
            resume(run)
        (run / file).write_bytes(before)
    with pytest.raises(UserError, match="holds an unfinished run; go on with it by 'aap-hw prune --resume"):
        start(TO_BUDGET, table(), run)
    assert resume(run).summary == finished.summary


@pytest.mark.slow
def test_run_of_relative_paths_goes_on_from_any_folder_and_with_another_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, elsewhere = tmp_path / "begun", tmp_path / "elsewhere"
    for folder in (begun, elsewhere):
        folder.mkdir()
    make = 'def make():\n    return zoo.build("resnet20", "embedded").module\n'
    (begun / "nets.py").write_text(f"from aap_hw.models import zoo\n\n\n{make}")
    (elsewhere / "nets.py").write_text("raise SystemExit('of another project')")
    few = few_images()
    arrays = {"train_images": few.train_images[::8], "train_labels": few.train_labels[::8]}
    np.savez(begun / "few.npz", **arrays, test_images=few.test_images[::5], test_labels=few.test_labels[::5])
    reached: list[tuple[object, ...]] = []
    monkeypatch.setattr(jobs, "device_of", lambda _, *where: (None, reached.append(where[:2]) or "of the test"))
    monkeypatch.chdir(begun)
    job = Job(
        Origin.of("nets.py:make", (3, 32, 32)), ImageSource("npz:few.npz"), {"latency": Limit(0.6, True)},
        settings=replace(SETTINGS, rounds=1), connect_to="rpc://127.0.0.1:1", device="mine.toml",
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        start(job, table(), Path("run"), stop_at("epoch"))
    monkeypatch.chdir(elsewhere)
    with pytest.raises(KeyboardInterrupt):
        resume(Path("../begun/run"), stop_at("round"), "rpc://127.0.0.1:2")
    pruned = resume(Path("../begun/run"))
    assert reached == [("mine.toml", f"rpc://127.0.0.1:{port}") for port in (1, 2, 2)]
    assert (pruned.folder, pruned.summary["model"]) == (Path("../begun/run"), "nets.py:make")
    assert Path.cwd() == elsewhere
    assert samples_of(pruned.folder).count("test") == 20
    assert RunFolder(pruned.folder).load().kept == pruned.network.kept


@pytest.mark.usefixtures("quick")
def test_checkpoints_that_nobody_goes_on_from_are_deleted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    left = run / "checkpoints" / "round-1.safetensors"

    def leave() -> None:
        left.parent.mkdir(parents=True)
        left.write_bytes(b"of another run")

    leave()
    pruned = start(replace(TO_BUDGET, settings=replace(SETTINGS, rounds=1)), table(), run)
    assert [each["accuracy"] for each in pruned.network.record["rounds"]]
    assert not left.parent.exists()
    leave()
    RunFolder(run).load()
    assert not left.parent.exists()
    leave()
    with pytest.raises(UserError, match="is finished, so there is nothing to resume"):
        resume(run)
    assert not left.parent.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_full_disk_is_one_sentence_and_the_last_checkpoint_survives(
    mounted: Callable[[str], Path], tmp_path: Path
) -> None:
    job = replace(TO_BUDGET, settings=replace(SETTINGS, rounds=1))
    undisturbed = tmp_path / "undisturbed"
    start(job, table(), undisturbed)
    sizes = {path.name: path.stat().st_size for path in undisturbed.iterdir()}
    # A checkpoint holds weights and momentum; there is room for one, but not for its successor beside it.
    room = sum(sizes.values()) - sizes["model.safetensors"] + 3 * sizes["model.safetensors"]
    disk = mounted(f"size={room}")
    run = disk / "run"
    with pytest.raises(WriteError) as refused:
        start(job, table(), run)
    assert str(refused.value) == (
        f"cannot write {run}/checkpoints/round-1.safetensors: No space left on device; check that its folder exists, "
        f"is writable and has room; then 'aap-hw prune --resume {run}' goes on with the run"
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["round-1.safetensors"]
    remount(disk, "size=20m")
    events: list[Event] = []
    resume(run, events.append)
    assert [event.figures.get("epoch") for event in events if event.name == "epoch"] == [1, 2]
    assert result(run) == result(undisturbed)
