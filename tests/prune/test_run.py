"""A run folder gives back the very network that was put into it, in any process, or says in one sentence why not."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aap_hw.errors import UserError
from aap_hw.models.saved import SavedNetwork, write
from aap_hw.prune.environment import note_environment
from aap_hw.prune.events import EventLog
from aap_hw.prune.run import RunFolder, resume_command
from tests import forked
from tests.synthetic import ORIGIN, few_images, half_pruned, resnet20

ROOT = Path(__file__).parents[2]

PRINTS_OUTPUTS_OF_A_RUN = """
import sys
from pathlib import Path
import torch
from aap_hw.prune.run import RunFolder
from tests.synthetic import few_images
torch.manual_seed(99)
module = RunFolder(Path(sys.argv[1])).load().module
with torch.no_grad():
    output = module(few_images().tensors("test", (3, 32, 32), range(16)))
print(output.numpy().tobytes().hex())
"""

# Forks, so that the network is made once; each child dies at another moment of saving it.
SAVES_AND_DIES = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from aap_hw import files
from aap_hw.prune.run import RunFolder
from tests.synthetic import half_pruned
network = half_pruned()
for moment in range(int(sys.argv[2])):
    if os.fork() == 0:
        passed = 0
        def deadly(real):
            def call(*arguments):
                global passed
                if passed == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                passed += 1
                return real(*arguments)
            return call
        run = RunFolder(Path(sys.argv[1]) / str(moment))
        run.create()
        for name in ("open", "fsync", "replace"):
            setattr(files.os, name, deadly(getattr(os, name)))
        run.save(network, {"model": "resnet20"})
        os._exit(0)
    _, status = os.wait()
    print(os.WTERMSIG(status), flush=True)
"""


CHECKS_A_FOLDER_AS_NOBODY = """
import os, sys
from pathlib import Path
from aap_hw.errors import UserError
from aap_hw.files import require_writable_folder
if os.geteuid() == 0:
    os.setuid(65534)
try:
    require_writable_folder(Path(sys.argv[1]))
except UserError as refused:
    print(refused)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "deep" / "run"
    run = RunFolder(path)
    run.create()
    log = EventLog(path)
    log.add({"event": "start", "dense_ms": 1.5})
    log.close()
    run.save(half_pruned(), {"dense_ms": 1.5, "pruned_ms": None})
    return path


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy"
    path.mkdir()
    for file in saved.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.mark.slow  # test_saved loads and computes in this process
def test_outputs_in_a_fresh_process_are_the_same_to_the_last_bit(saved: Path) -> None:
    child = forked.run(PRINTS_OUTPUTS_OF_A_RUN, [str(saved)], cwd=ROOT)
    assert child.returncode == 0, child.stderr
    images = few_images().tensors("test", (3, 32, 32), range(16))
    with torch.no_grad():
        expected = half_pruned().module(images).numpy()
    actual = np.frombuffer(bytes.fromhex(child.stdout), dtype=np.float32).reshape(expected.shape)
    assert np.array_equal(actual, expected)


def test_all_that_was_saved_is_loaded(saved: Path) -> None:
    network, loaded = half_pruned(), RunFolder(saved).load()
    assert (loaded.origin, loaded.kept, loaded.device, loaded.record) == (
        network.origin, network.kept, network.device, network.record,
    )  # fmt: skip
    assert not loaded.module.training
    assert json.loads((saved / "summary.json").read_text()) == {"dense_ms": 1.5, "pruned_ms": None}
    event = json.loads((saved / "events.jsonl").read_text())
    assert time.time() - 3600 < event.pop("time") < time.time()
    assert event == {"event": "start", "dense_ms": 1.5}
    assert sorted(file.name for file in saved.iterdir()) == [
        "events.jsonl", "model.safetensors", "run.json", "summary.json",
    ]  # fmt: skip


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        document = json.loads((path / "run.json").read_text())
        change(document)
        (path / "run.json").write_text(json.dumps(document))

    return damage


def flip_a_bit(path: Path) -> None:
    weights = bytearray((path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (path / "model.safetensors").write_bytes(weights)


def cut_short(path: Path) -> None:
    text = (path / "run.json").read_text()
    (path / "run.json").write_text(text[: len(text) // 2])


def another_network(path: Path) -> None:
    module, _, _ = resnet20()
    write(SavedNetwork(ORIGIN, {}, module), path / "model.safetensors")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "tampered weights": (flip_a_bit, "model.safetensors is not the file that the run wrote"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "cannot read .*model.safetensors"),
    "truncated": (cut_short, "run.json is damaged"),
    "empty": (lambda path: (path / "run.json").write_text(""), "run.json is damaged"),
    "not text": (lambda path: (path / "run.json").write_bytes(b"\xff\xfe{}"), "not UTF-8"),
    "a list": (lambda path: (path / "run.json").write_text("[]"), "run.json is damaged"),
    "wrong version": (edited(lambda d: d.update(schema_version=7)), "has version 7 and this aap-hw reads version 3"),
    "no device": (edited(lambda d: d.pop("device")), "damaged .'device' is missing"),
    "no checksum": (edited(lambda d: d.update(sha256=[])), "run.json is damaged"),
    "network of another run": (another_network, "is not the file that the run wrote"),
    "unfinished": (lambda path: (path / "run.json").unlink(), "holds no finished run"),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.usefixtures("quick_baseline")
def test_damaged_run_is_one_sentence(copied: Path, name: str) -> None:
    damage, sentence = DAMAGES[name]
    damage(copied)
    with pytest.raises(UserError, match=sentence) as refused:
        RunFolder(copied).load()
    assert "\n" not in str(refused.value)
    assert str(copied) in str(refused.value)


def test_folder_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no run folder .*nowhere; 'aap-hw prune' makes one"):
        RunFolder(tmp_path / "nowhere").load()


def test_command_that_resumes_a_run_survives_the_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my 'first' run"
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {resume_command(folder)}"], capture_output=True, text=True, check=True
    )
    assert words.stdout.splitlines() == ["aap-hw", "prune", "--resume", str(folder)]


def test_finished_run_is_not_overwritten(copied: Path) -> None:
    before = {file.name: file.read_bytes() for file in copied.iterdir()}
    for begin in (RunFolder(copied).check_free, RunFolder(copied).create):
        with pytest.raises(UserError, match="already holds a run; choose another folder with --out"):
            begin()
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == before


def test_unfinished_run_is_begun_anew_and_leaves_no_figures_behind(copied: Path) -> None:
    (copied / "run.json").unlink()
    (copied / "summary.json").write_text('{"max_abs_diff": 1}')
    run = RunFolder(copied)
    run.create()
    assert not (copied / "events.jsonl").exists()
    run.save(replace(half_pruned(), record={}), {"dense_ms": 2})
    assert json.loads((copied / "summary.json").read_text()) == {"dense_ms": 2}


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_folder_that_cannot_be_made_is_one_sentence_and_nothing_is_made(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    for begin in (RunFolder(tmp_path / "file" / below).check_free, RunFolder(tmp_path / "file" / below).create):
        with pytest.raises(UserError, match="file is not a folder; choose another"):
            begin()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_read_only_folder_is_one_sentence() -> None:
    # Nothing is read-only for root, so that the child becomes nobody; pytest's own folders would hide all from it.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "locked").mkdir(mode=0o555)
        child = forked.run(CHECKS_A_FOLDER_AS_NOBODY, [f"{folder}/locked/run"], cwd=ROOT)
        assert child.stdout.strip().endswith(f"{folder}/locked is read-only; choose another")


def test_checking_makes_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "a" / "b").check_free()
    assert list(tmp_path.iterdir()) == []


def test_damaged_summary_is_one_sentence(copied: Path) -> None:
    (copied / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        RunFolder(copied).update_summary({"pruned_ms": 1})


@pytest.mark.slow
@pytest.mark.usefixtures("quick_baseline")
def test_kill_at_any_moment_of_saving_leaves_no_run_or_a_whole_one(tmp_path: Path) -> None:
    moments = 16
    child = forked.run(SAVES_AND_DIES, [str(tmp_path), str(moments)], cwd=ROOT)
    assert child.returncode == 0, child.stderr
    signals = [int(line) for line in child.stdout.split()]
    died = signals.count(9)
    assert signals == [9] * died + [0] * (moments - died)
    # Three files are opened, synced, renamed, and their folder opened and synced.
    assert died == 15
    expected = half_pruned().module.state_dict()
    whole = 0
    for moment in range(moments):
        run = RunFolder(tmp_path / str(moment))
        if (run.path / "run.json").exists():
            whole += 1
            loaded = run.load().module.state_dict()
            assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
        else:
            with pytest.raises(UserError, match="holds no finished run"):
                run.load()
            run.create()
    assert 1 < whole < moments


def test_the_environment_is_noted_beside_a_changed_file_whose_name_is_no_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = tmp_path / os.fsdecode(b"caf\xe9.txt")
    named.write_text("before")
    for words in (
        "init -q", "config core.quotepath false", "add .", "-c user.name=a -c user.email=a@b commit -q -m first"
    ):  # fmt: skip
        subprocess.run(["git", *words.split()], check=True)
    named.write_text("after")
    for _ in range(2):
        note_environment(tmp_path)
    noted = tmp_path / "environment.json"
    assert [each["git"]["changed"] for each in json.loads(noted.read_text())] == [True, True]
    noted.write_text("{")
    with pytest.raises(UserError, match=r"environment\.json is damaged; delete it"):
        note_environment(tmp_path)
