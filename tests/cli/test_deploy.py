"""``aap-hw deploy`` says what was measured, and what was not: of a device that nobody here has, nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aap_hw.compile.gpu.cubin import kernels_of
from aap_hw.deploy.deploying import Deployment
from aap_hw.device.timing import Timing
from aap_hw.policy import Budget
from aap_hw.prune.rounds import prune
from aap_hw.prune.run import RunFolder
from aap_hw.prune.task import PruneSettings, Task
from tests.needs import needs_cross_compiler
from tests.synthetic import ORIGIN, few_images, table


def shown(
    aap_hw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, precision: str, summary: dict[str, Any], *unknown: str
) -> str:
    """What is said of a run in float32 that was deployed, and of which these figures are known."""
    figures = {"pruned_ms": 1.0, "dense_ms": 2.0, "slow_path": "", **summary}
    timed = {"deployed": Timing(1000.0, 0.0, 1), "unpruned": Timing(2000.0, 0.0, 1)}
    done = Deployment(Path("bundle"), 0.0, 1e-4, 100.0, 8, timed, figures, precision, 8, "fp32", unknown)
    monkeypatch.setattr("aap_hw.api.deploy", lambda *_, **__: done)
    outcome = aap_hw("deploy", "run", "--device", "x86", "--precision", precision)
    assert outcome.code == 0, outcome.err
    return str(outcome.out)


def test_accuracy_and_memory_of_a_run_in_another_precision_are_said_to_be_unknown(
    aap_hw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_run = {"retrained": True, "params_pruned": 500}
    assert (
        "accuracy and memory in int8 are not known, as the run was pruned in fp32; prune with --precision int8 to know "
        "them"
    ) in shown(aap_hw, monkeypatch, "int8", of_run, "accuracy", "memory")
    assert (
        "memory in half is not known, as the run was pruned in fp32; prune with --precision half to know it"
    ) in shown(aap_hw, monkeypatch, "half", of_run, "memory")
    assert "not known" not in shown(aap_hw, monkeypatch, "int8", of_run)


def test_run_that_has_lost_its_summary_is_shown_as_a_run(
    aap_hw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(aap_hw, monkeypatch, "fp32", {})
    assert "unpruned" in text
    assert "bundle: bundle" in text


@pytest.mark.slow  # tests/compile/test_gpu.py compiles for a GPU without a run
@needs_cross_compiler
def test_bundle_for_a_jetson_is_compiled_anywhere_and_says_that_nothing_was_timed(
    aap_hw: Callable[..., Any], tmp_path: Path, quick: None
) -> None:
    task = Task(ORIGIN, table(name="jetson-orin"), few_images())
    run = RunFolder(tmp_path / "run")
    run.create()
    run.save(*prune(task, [Budget.parse("50%")], PruneSettings(calibration_images=8)))
    refused = aap_hw("deploy", str(run.path), "--device", "jetson-orin", "--no-run", "--connect", "rpc://127.0.0.1:1")
    assert (refused.code, refused.out) == (2, "")
    assert "--no-run does not reach the device, so --connect would do nothing" in refused.err
    done = aap_hw("deploy", str(run.path), "--device", "jetson-orin", "--no-run", "--json")
    assert done.code == 0, done.err
    assert "nothing was run: outputs are not checked and latency is not measured" in done.err
    bundle = Path(json.loads(done.out)["bundle"])
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["latency"]["measured"] is None
    assert manifest["requires"]["accelerator"] == "cuda"
    assert manifest["requires"]["machine"] == "aarch64", "the GPU's host is an Arm CPU"
    assert len(kernels_of((bundle / "kernels.cubin").read_bytes())) >= 10
    assert run.summary()["pruned_ms"] is None
