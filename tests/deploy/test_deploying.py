"""What is deployed computes what PyTorch computes, anywhere; what does not is refused and leaves nothing behind.

Runs on this machine's real device: ResNet-20 is cut by a real plan, compiled and timed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from tvm import rpc

from aap_hw import api
from aap_hw.compile.front.network import Network
from aap_hw.compile.library.lowering import compile_network
from aap_hw.deploy import deployable, deploying
from aap_hw.deploy.bundle import claimed
from aap_hw.deploy.deploying import Deployment, bundle_model_unseen, bundle_unseen, deploy
from aap_hw.deploy.reference import FEW
from aap_hw.device import load_profile
from aap_hw.device.boards import Boards
from aap_hw.device.connection import LocalDevice
from aap_hw.device.machine import LoadedLibrary
from aap_hw.errors import Fault, UserError
from aap_hw.files import WriteError
from aap_hw.prune.run import RunFolder
from aap_hw.prune.sentences import budget_sentences, figure_rows
from aap_hw.resources import resource_dirs
from tests.deploy.tiny import make_bundle
from tests.device import servers
from tests.synthetic import ESTIMATE, ORIGIN, few_images, of_this_device, this_device


def kept_by(finished: Path) -> Callable[..., SimpleNamespace]:
    """Takes a library that `deployed` kept instead of compiling it again."""

    def copied(*given: Any) -> SimpleNamespace:
        shutil.copy(finished.parent / given[3].name, given[3])
        return SimpleNamespace(slow_path="")

    return copied


@pytest.fixture(scope="module")
def deployed(finished: Path) -> Iterator[tuple[Path, Deployment]]:
    real = compile_network

    def compile_and_keep(*arguments: Any) -> Network:
        network = real(*arguments)
        shutil.copy(arguments[3], finished.parent)
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployable, "CHECKED_PIXELS", 60 * 32 * 32)
        patch.setattr(deploying, "compile_network", compile_and_keep)
        planned = RunFolder(finished).update_summary({"dense_is_measured": True})
        (finished.parent / "planned.json").write_text(json.dumps(planned))
        yield finished, deploy(RunFolder(finished), this_device(), few_images(), finished.parent / "bundle")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_compiled_network_computes_what_pytorch_does(deployed: tuple[Path, Deployment]) -> None:
    path, result = deployed
    assert result.images == 60
    assert 0 < result.max_abs_diff <= 1e-4
    assert result.agreement == 100.0
    summary = json.loads((path / "summary.json").read_text())
    assert summary == result.summary
    assert summary["max_abs_diff"] == result.max_abs_diff
    assert (summary["dense_ms"], summary["pruned_ms"]) == (
        result.latencies["unpruned"].latency_us / 1e3, result.latencies["deployed"].latency_us / 1e3,
    )  # fmt: skip
    assert summary["predicted_ms"] > 0, "figures of the run are kept"
    # A share of the unpruned latency is a share of what was measured just now, and so is what a plan was predicted.
    assert summary["budget_ms"] == summary["budgets"]["latency"] == pytest.approx(0.5 * summary["dense_ms"])
    planned = json.loads((path.parent / "planned.json").read_text())
    assert planned["dense_ms"] != summary["dense_ms"]
    share = planned["predicted_ms"] / planned["dense_ms"]
    assert summary["predicted_ms"] / summary["dense_ms"] == pytest.approx(share)


def test_checksums_of_the_manifest_are_those_of_the_files(deployed: tuple[Path, Deployment]) -> None:
    path, result = deployed
    manifest = json.loads((result.bundle / "manifest.json").read_text())
    files = {path.name for path in result.bundle.iterdir()}
    assert files == {"manifest.json", *manifest["sha256"]}
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((result.bundle / name).read_bytes()).hexdigest() == digest
    assert manifest["device"] == of_this_device()
    assert manifest["labels"] == list(few_images().class_names)
    summary = json.loads((path / "summary.json").read_text())
    assert manifest["latency"]["predicted"] == {"ms": summary["predicted_ms"], "provenance": "measured"}
    measured = manifest["latency"]["measured"]
    assert (measured["ms"], measured["unpruned_ms"]) == (summary["pruned_ms"], summary["dense_ms"])


def test_reference_outputs_are_those_of_pytorch(deployed: tuple[Path, Deployment]) -> None:
    path, result = deployed
    inputs, outputs = (np.load(result.bundle / f"reference_{what}.npy") for what in ("inputs", "outputs"))
    with torch.no_grad():
        expected = RunFolder(path).load().module(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-2, "outputs that do not depend on the image prove nothing"


def test_preprocessing_of_the_manifest_makes_the_reference_inputs(deployed: tuple[Path, Deployment]) -> None:
    _, result = deployed
    how = json.loads((result.bundle / "manifest.json").read_text())["preprocessing"]
    inputs = np.load(result.bundle / "reference_inputs.npy")
    images = few_images().test_images[few_images().spread("test", 60)[:8]]
    resized = torch.nn.functional.interpolate(torch.from_numpy(images[:, None]).float(), (32, 32), mode="bilinear")
    for channel in range(3):
        expected = (resized[:, 0] * how["scale"] - how["mean"][0]) / how["std"][0]
        np.testing.assert_allclose(inputs[:, channel], expected, atol=1e-5)


def test_bundle_brings_along_what_runs_it(deployed: tuple[Path, Deployment], tmp_path: Path) -> None:
    _, result = deployed
    script = (
        "import runpy, sys; sys.modules['torch'] = None; del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    child = subprocess.run(
        [sys.executable, "-P", "-c", script, str(result.bundle / "run.py")],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith(f"{FEW} reference inputs: largest difference from PyTorch ")


@pytest.mark.slow  # it compiles ResNet-20 again, and what is measured is above
def test_bundle_for_a_device_that_is_not_there_says_that_nothing_was_measured(finished: Path, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(finished, tmp_path / "run")))
    estimate = {"device": "x86", "method": ESTIMATE["method"], **ESTIMATE["error"]}
    predicted_ms = run.update_summary({"provenance": "estimated", "estimate": estimate})["predicted_ms"]
    before = contents(run.path)
    folder = bundle_unseen(run, load_profile("x86"), few_images(), tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["latency"] == {"predicted": None, "measured": None}, "an estimate is no latency"
    assert manifest["estimate"] == {"ms": predicted_ms, **estimate}
    assert manifest["device"]["cpu"] == ""
    assert "provenance" not in manifest["device"]
    real = of_this_device()
    assert {**manifest["device"], "cpu": real["cpu"], "provenance": real["provenance"]} == real
    assert contents(run.path) == before, "figures of the run are those of a device"


def test_run_of_another_device_is_refused(finished: Path, tmp_path: Path) -> None:
    text = (resource_dirs("device_profiles")[0] / "x86.toml").read_text("utf-8")
    profile = tmp_path / "other.toml"
    profile.write_text(text.replace('name = "x86"', 'name = "other"'))
    before = contents(finished)
    with pytest.raises(UserError, match=r"pruned with the latency table of x86, .* deploy it with --device x86"):
        deploy(RunFolder(finished), LocalDevice(load_profile(profile)), few_images())
    assert contents(finished) == before


class Faulty:
    """This machine's device, but the outputs are not what was computed."""

    def __init__(self, change: Any) -> None:
        self.profile, self.target, self.describe = this_device().profile, this_device().target, this_device().describe
        self._change = change

    def load(self, library: Path) -> LoadedLibrary:
        """Load a library whose outputs are changed."""
        loaded, change = this_device().load(library), self._change

        class Changed:
            set_inputs, time_us = staticmethod(loaded.set_inputs), staticmethod(loaded.time_us)

            def run(self, function: str) -> list[np.ndarray]:
                return [np.asarray(change(output), dtype=np.float32) for output in loaded.run(function)]

        return Changed()


class Emulated(Faulty):
    """This machine's device, said to be emulated; what it computes is right."""

    def __init__(self) -> None:
        super().__init__(lambda outputs: outputs)
        self.describe = lambda: replace(this_device().describe(), provenance="emulated")


def test_emulated_device_is_checked_and_not_timed(
    deployed: tuple[Path, Deployment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, _ = deployed
    run = RunFolder(Path(shutil.copytree(finished, tmp_path / "run")))
    before = run.summary()
    monkeypatch.setattr(deploying, "compile_network", kept_by(finished))
    monkeypatch.setattr(deploying, "time_loads_in_turn", None)
    result = deploy(run, Emulated(), few_images(), tmp_path / "bundle")
    assert (result.latencies, result.images) == ({}, FEW)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["latency"]["measured"] is None
    assert {name: value for name, value in run.summary().items() if name.endswith("_ms")} == {
        name: value for name, value in before.items() if name.endswith("_ms")
    }


def test_real_device_measures_what_an_emulated_table_only_predicted(
    deployed: tuple[Path, Deployment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, _ = deployed
    run = RunFolder(Path(shutil.copytree(finished, tmp_path / "run")))
    predicted = run.update_summary({"provenance": "emulated"})["predicted_ms"]
    monkeypatch.setattr(deployable, "CHECKED_PIXELS", 1)
    monkeypatch.setattr(deploying, "compile_network", kept_by(finished))
    summary = deploy(run, this_device(), few_images(), tmp_path / "bundle").summary
    measured, table = figure_rows(summary)[:2]
    assert measured[:3] == ("latency, ms, measured", f"{summary['dense_ms']:.3f}", f"{summary['pruned_ms']:.3f}")
    assert table[:3] == ("time, ms, emulated: no latency of the device", "", f"{predicted:.3f}")
    assert f"{summary['pruned_ms']:.3f} ms measured" in budget_sentences(summary)[0]
    latency = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["latency"]
    assert (latency["predicted"]["provenance"], latency["measured"]["provenance"]) == ("emulated", "measured")


def test_board_is_held_only_while_the_network_runs_there(
    deployed: tuple[Path, Deployment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, _ = deployed
    run = RunFolder(Path(shutil.copytree(finished, tmp_path / "run")))
    monkeypatch.setattr(deployable, "CHECKED_PIXELS", 1)
    with servers.tracker() as tracker, servers.board("x86", tracker):

        def compile_meanwhile(*given: Any) -> SimpleNamespace:
            servers.wait_until_free(tracker, "x86")
            return kept_by(finished)(*given)

        monkeypatch.setattr(deploying, "compile_network", compile_meanwhile)
        boards = Boards(load_profile("x86").reached_by(f"tracker://127.0.0.1:{tracker.port}/x86"))
        result = deploy(run, boards, few_images(), tmp_path / "bundle")
        servers.wait_until_free(tracker, "x86")
    assert result.max_abs_diff <= 1e-4
    assert result.summary["pruned_ms"] > 0


@pytest.mark.slow
def test_board_that_others_took_meanwhile_is_waited_for_with_a_word(
    deployed: tuple[Path, Deployment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, _ = deployed
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    monkeypatch.setattr(deployable, "CHECKED_PIXELS", 1)
    others: list[object] = []
    told: list[str] = []
    with servers.tracker() as tracker, servers.board("x86", tracker):

        def compile_meanwhile(*given: Any) -> SimpleNamespace:
            if not others:
                servers.wait_until_free(tracker, "x86")
                others.append(rpc.connect_tracker("127.0.0.1", tracker.port).request("x86"))
            return kept_by(finished)(*given)

        def on_notice(sentence: str) -> None:
            told.append(sentence)
            others[0] = None  # their session ends

        monkeypatch.setattr(deploying, "compile_network", compile_meanwhile)
        connect = f"tracker://127.0.0.1:{tracker.port}/x86"
        result = api.deploy(run, "x86", connect=connect, data="embedded", out=tmp_path / "bundle", on_notice=on_notice)
    (sentence,) = told
    assert "x86" in sentence
    assert sentence.endswith("; it is tried again now and then")
    assert result.summary["pruned_ms"] > 0


@pytest.mark.parametrize("has_summary", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_figures_are_added_to_those_that_the_run_has_in_the_same_precision(
    precision: str, has_summary: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"model": "resnet20", "predicted_ms": 5.0, "accuracy_pruned": 91.0} if has_summary else {}
    if has_summary:
        (tmp_path / "summary.json").write_text(json.dumps(known))
    found = {"pruned_ms": 1.0, "dense_ms": 2.0}
    done = Deployment(tmp_path / "bundle", 0.0, 1e-4, None, FEW, {}, found, precision, FEW, pruned_in="fp32")
    monkeypatch.setattr(deploying, "_deployed", lambda *_: done)
    result = deploy(RunFolder(tmp_path), this_device(), few_images(), precision=precision)
    of_both = known if precision == "fp32" else {name: known[name] for name in ("model",) if has_summary}
    unknown = ("accuracy",) if has_summary and precision == "int8" else ()
    assert result == replace(done, summary={**of_both, **found}, unknown=unknown)
    assert RunFolder(tmp_path).summary() == (result.summary if has_summary and precision == "fp32" else known)


def one_value_off(outputs: np.ndarray) -> np.ndarray:
    outputs = outputs.copy()
    outputs[0, 3] += 0.02
    return outputs


@pytest.mark.parametrize("change", [one_value_off, lambda outputs: outputs * np.nan], ids=["off", "nan"])
def test_network_that_computes_something_else_is_refused_and_nothing_is_written(
    deployed: tuple[Path, Deployment], change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, _ = deployed
    monkeypatch.setattr(deployable, "CHECKED_PIXELS", 1)
    monkeypatch.setattr(deploying, "compile_network", kept_by(finished))
    before = contents(finished)
    with pytest.raises(Fault, match=r"differs from PyTorch by .* nothing was written"):
        deploy(RunFolder(finished), Faulty(change), few_images())
    assert contents(finished) == before


def test_impossible_folder_is_refused_before_anything_is_compiled(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploying, "compile_network", None)
    (tmp_path / "file").write_text("")
    before = contents(finished)
    with pytest.raises(UserError, match="file is not a folder; choose another"):
        deploy(RunFolder(finished), this_device(), few_images(), tmp_path / "file" / "bundle")
    assert contents(finished) == before
    (tmp_path / "run" / "summary.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*run/summary\.json: it is a folder"):
        deploy(RunFolder(tmp_path / "run"), this_device(), few_images(), tmp_path / "bundle")


def test_older_bundle_is_replaced_as_a_whole_or_no_longer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aap_hw.deploy import bundle as bundles

    folder = tmp_path / "bundle"
    written: list[Path] = []

    def full_disk_at_the_second_file(path: Path, data: bytes | str) -> None:
        written.append(path)
        if len(written) == 2:
            raise UserError("no room")
        path.write_bytes(data if isinstance(data, bytes) else data.encode())

    make_bundle(folder)
    assert (folder / "manifest.json").exists()
    monkeypatch.setattr(bundles, "write_atomic", full_disk_at_the_second_file)
    with pytest.raises(UserError, match="no room"):
        make_bundle(folder)
    assert not (folder / "manifest.json").exists()
    assert (folder / "unfinished-bundle").exists()
    monkeypatch.undo()
    (folder / ".aap-hw-0123.tmp").write_bytes(b"half of a file, of a process that was killed")
    (folder / "kernels.cubin").write_bytes(b"of a GPU that is deployed to no longer")
    make_bundle(folder)
    whole = contents(folder)
    assert whole.keys() == {"manifest.json", *json.loads(whole["manifest.json"])["sha256"]}
    monkeypatch.setattr(bundles, "manifest_schema", lambda: {"maxProperties": 0})
    with pytest.raises(jsonschema.ValidationError):
        make_bundle(folder)
    assert contents(folder) == whole, "a bundle that cannot be written leaves the older one"


@pytest.mark.parametrize(
    "theirs",
    [
        {"run.py": "print('mine')"},
        {"model.so": "", "run.cc": ""},
        {"manifest.json": '{"schema_version": 1}'},
        {"manifest.json": "[]"},
        {"manifest.json": "{"},
    ],
    ids=str,
)
def test_folder_that_is_no_bundle_keeps_its_files(
    theirs: dict[str, str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploying, "compile_network", None)
    for name, text in theirs.items():
        (tmp_path / name).write_text(text)
    before, sentence = contents(tmp_path), f"is no bundle and holds {', '.join(sorted(theirs))}, which a bundle would"
    with pytest.raises(UserError, match=sentence):
        bundle_unseen(RunFolder(finished), load_profile("x86"), few_images(), tmp_path)
    with pytest.raises(UserError, match=sentence):
        bundle_model_unseen(ORIGIN, load_profile("x86"), few_images(), tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_that_another_process_deploys_to_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploying, "compile_network", None)
    folder = tmp_path / "new" / "bundle"
    with claimed(folder), pytest.raises(UserError, match=f"another process is deploying to {folder}; wait for it"):
        bundle_unseen(RunFolder(finished), load_profile("x86"), few_images(), folder)
    assert not folder.exists(), "nothing came of it"
    with claimed(folder):
        (folder / "manifest.json").touch()
    assert folder.exists()


def test_bundle_that_does_not_fit_is_one_sentence_and_no_bundle(mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=64k")
    with pytest.raises(WriteError, match=f"cannot write {disk}/bundle/.*: No space left on device; check that"):
        make_bundle(disk / "bundle")
    assert not (disk / "bundle" / "manifest.json").exists()
