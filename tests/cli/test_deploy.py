"""``aap-hw deploy`` for a device that nobody here has: compiled, bundled, and said not to have been timed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aap_hw.compile.gpu.cubin import kernels_of
from aap_hw.policy import Budget
from aap_hw.prune.rounds import prune
from aap_hw.prune.run import RunFolder
from aap_hw.prune.task import PruneSettings, Task
from tests.needs import needs_cross_compiler
from tests.synthetic import ORIGIN, few_images, table


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
