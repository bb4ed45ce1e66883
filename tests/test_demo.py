"""The way that a stranger goes first, on this machine's real device: ``make demo`` and a look at what it made.

In its quick form, in the environment that is there, and with its commands in one process, so that PyTorch and TVM are
imported once; what ``make demo`` adds is the installation. How long it took is told at the end of the tests.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.needs import CHROMIUM
from tests.report.browser import open_page

ROOT = Path(__file__).parent.parent


# Two whole networks calibrate the table instead of two dozen.
DEMO = """
import functools, runpy, sys
from aap_hw.cli.main import main
from aap_hw.lut import profiling
profiling.profile_model = functools.partial(profiling.profile_model, networks=2)
del sys.argv[0]
demo = runpy.run_path(sys.argv[0])
demo["main"].__globals__["run"] = lambda command: main(command[3:])
sys.exit(demo["main"]())
"""


# A step of the demo that takes its time to say what it kept, as a profile does whose workers have to end first.
SLOW_TO_END = """
import time
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.6)
    print("kept", flush=True)
    raise SystemExit(130)
"""
RUN_STEP = (
    "import runpy, sys; demo = runpy.run_path(sys.argv[1]); sys.exit(demo['run']([sys.executable, *sys.argv[2:]]))"
)


def test_ctrl_c_waits_for_what_the_step_has_to_say() -> None:
    demo = subprocess.Popen(
        [sys.executable, "-c", RUN_STEP, ROOT / "scripts" / "demo.py", "-c", SLOW_TO_END],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert demo.stdout is not None
        assert demo.stdout.readline() == "begun\n"
        os.killpg(demo.pid, signal.SIGINT)
        assert demo.communicate(timeout=30) == ("kept\n", "")
        assert demo.returncode == 130
    finally:
        demo.kill()


def test_a_run_that_is_there_is_not_made_again_and_one_that_was_ended_early_goes_on(tmp_path: Path) -> None:
    pruning, run = runpy.run_path(str(ROOT / "scripts" / "demo.py"))["pruning"], tmp_path / "run"
    assert list(pruning(["prune"], run)) == [["prune", "--out", str(run)]]
    run.mkdir()
    (run / "config.json").touch()
    assert list(pruning(["prune"], run)) == [["prune", "--resume", str(run)]]
    (run / "run.json").touch()
    assert list(pruning(["prune"], run)) == []


@pytest.mark.slow
def test_demo_and_its_report_go_through_without_a_warning(
    aap_hw: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    demo = subprocess.run(
        [sys.executable, "-c", DEMO, ROOT / "scripts" / "demo.py", "--quick"],
        capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, timeout=600, check=False,
    )  # fmt: skip
    assert demo.returncode == 0, demo.stderr
    # How far it is, and what it is at if that takes longer than ten seconds.
    told = re.compile(r"measured \d+ of \d+ (points|networks)|aap-hw: [a-z]+ing [^;]+$")
    assert [line for line in demo.stderr.splitlines() if not told.match(line)] == []
    assert not re.search(r"(?i)warn|deprecat|traceback", demo.stdout)
    assert re.search(r"tried a plan on the device: predicted .* measured .* (within|over) the budget", demo.stdout)
    assert "latency, ms, measured" in demo.stdout
    assert "not measured" not in demo.stdout
    assert re.search(r"the budget of .* ms is (met|MISSED)", demo.stdout)
    checked = r"checked on \d+ samples: largest difference from (.+?) (\S+),.* the same class for (\S+) %"
    in_mixed, in_float32, in_int8 = re.findall(checked, demo.stdout)
    summary = json.loads(Path("runs/demo/summary.json").read_text())
    assert summary["precision"] == "mixed"
    # A CPU on which int8 is slower may have all layers in float32.
    of_mixed = "PyTorch" if summary["deployed_precision"] == "fp32" else "PyTorch's quantised network"
    assert (in_float32[0], in_mixed[0], in_int8[0]) == ("PyTorch", of_mixed, "PyTorch's quantised network")
    assert float(in_float32[1]) <= 1e-4
    assert min(float(agreement) for *_, agreement in (in_mixed, in_float32, in_int8)) >= 99
    assert "bundle: runs/demo/bundle-x86" in demo.stdout
    parts = r"profile \d+ s, prune \d+ s, deploy \d+ s, compare \d+ s"
    assert re.search(rf"demo finished in .* minutes \({parts}\); figures in runs/demo/compared\.json", demo.stdout)
    assert summary["budget_ms"] == pytest.approx(0.5 * summary["dense_ms"])
    manifest = json.loads(Path("runs/demo/bundle-x86/manifest.json").read_text())
    assert manifest["precision"] == summary["deployed_precision"]
    compared = json.loads(Path("runs/demo/compared.json").read_text())
    rows = {row["network"]: row for row in compared["rows"]}
    assert list(rows) == ["float32, unpruned", "int8, unpruned", "mixed, pruned"]
    shown = [line.split("  ")[0] for line in demo.stdout.splitlines() if line.startswith(tuple(rows))]
    assert shown == list(rows)
    # The libraries classify the images as PyTorch did when the runs were made.
    for name, expected in (
        ("float32, unpruned", summary["accuracy_dense"]),
        ("mixed, pruned", summary["accuracy_pruned"]),
    ):
        assert rows[name]["accuracy"] == pytest.approx(expected, abs=1.01), name
        assert rows[name]["latency_ms"] > 0
    assert rows["int8, unpruned"]["library_bytes"] < rows["float32, unpruned"]["library_bytes"]
    assert rows["mixed, pruned"]["parameters"] == summary["params_pruned"] <= summary["params_dense"]
    # Where int8 alone takes less than half of the time, nothing has to be cut.
    assert summary["params_pruned"] < summary["params_dense"] or summary["deployed_precision"] == "int8"

    report = aap_hw("report", "runs/demo")
    assert (report.code, report.err) == (0, "")
    if CHROMIUM:
        assert open_page(Path("runs/demo/report.html").resolve()).console == []
    record_property("a stranger's way, quick form, seconds", round(time.monotonic() - began))

    unseen = aap_hw("deploy", "runs/demo", "--device", "x86", "--no-run", "--out", "bundle")
    assert (unseen.code, unseen.err) == (0, "")
    assert "nothing was run: outputs are not checked and latency is not measured" in unseen.out
    assert json.loads(Path("bundle/manifest.json").read_text())["latency"]["measured"] is None
    exported = aap_hw("export", "runs/demo", "--onnx", "net.onnx")
    assert (exported.code, exported.err) == (0, "")
    ends = "" if of_mixed == "PyTorch" else r", and its int8 kernels give the same class for \S+ %"
    assert re.fullmatch(
        rf"net\.onnx: \d\.\d MB, opset \d+; ONNX Runtime differs from {of_mixed} by at most \S+ on 8 samples{ends}\n",
        exported.out,
    )
