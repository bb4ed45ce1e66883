"""`aap-hw plan` shows the widths and what they cost, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from aap_hw.compile.front.domains import mixed_network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import INT8
from aap_hw.inputs import Inputs
from aap_hw.lut.file import load_table, save_table
from aap_hw.lut.predicting import predict_us
from aap_hw.lut.table import Validation
from aap_hw.resources import resource_dirs
from tests.synthetic import ORIGIN, resnet20, table_of, write_table

pytestmark = pytest.mark.usefixtures("quick")
RESNET20 = ("--model", "resnet20", "--weights", "embedded", "--calibration-images", "8")


def test_json_is_alone_on_standard_output_and_its_kernels_keep_the_budget(
    aap_hw: Callable[..., Any], table_file: Path
) -> None:
    outcome = aap_hw("plan", *RESNET20, "--lut", str(table_file), "--budget", "60%", "--json", "-")
    assert (outcome.code, outcome.err) == (0, "")
    plan, table = json.loads(outcome.out), load_table(table_file)
    assert plan["budget_ms"] == pytest.approx(0.6 * plan["dense_ms"])
    in_us = math.fsum(kernel["latency_us"] for kernel in plan["kernels"])
    assert in_us / 1e3 == pytest.approx(plan["predicted_ms"], rel=1e-9)
    assert in_us / 1e3 <= plan["budget_ms"] * (1 + 1e-12)
    widths = {group["name"]: group["kept"] for group in plan["groups"]}
    network = resnet20()[2]
    assert len(plan["kernels"]) == len(network.kernels)
    for shown, kernel in zip(plan["kernels"], network.kernels, strict=True):
        address = Address(KernelKey.parse(shown["kernel"]), (shown["width_in"], shown["width_out"]))
        assert address == kernel.at(widths)
        assert shown["table_us"] == table.latency(address).us
        assert shown["latency_us"] == pytest.approx(plan["calibration"] * shown["table_us"])
    assert plan["interpolated_kernels"] == 0
    frozen = [group for group in plan["groups"] if group["frozen"]]
    assert {group["name"] for group in frozen} == {"linear"}
    kinds = {group["name"]: group["kind"] for group in plan["groups"]}
    assert kinds.items() >= {"conv1": "stream", "layer1.0.conv1": "inner", "linear": "output"}.items()
    assert all(group["kept"] == group["width"] for group in frozen)
    assert any(group["kept"] < group["width"] for group in plan["groups"])
    assert 0 < plan["kept_attention"] < 1


def test_several_budgets_are_shown_with_what_is_spent_and_the_tightest_first(
    aap_hw: Callable[..., Any], table_file: Path
) -> None:
    asked = ("--lut", str(table_file), "--budget", "70%", "--max-params", "40%", "--max-flops", "39M")
    outcome = aap_hw("plan", *RESNET20, *asked, "--json", "-")
    assert (outcome.code, outcome.err) == (0, "")
    plan = json.loads(outcome.out)
    constraints = {each["resource"]: each for each in plan["constraints"]}
    assert constraints["latency"]["budget"] == plan["budget_ms"] == pytest.approx(0.7 * plan["dense_ms"])
    assert constraints["parameters"]["budget"] == pytest.approx(0.4 * constraints["parameters"]["dense"])
    assert constraints["flops"]["budget"] == 39e6
    assert all(each["spent"] <= each["budget"] for each in constraints.values())
    shares = [each["spent"] / each["budget"] for each in plan["constraints"]]
    assert shares == sorted(shares, reverse=True)
    assert plan["constraints"][0]["resource"] == "parameters"
    shown = aap_hw("plan", *RESNET20, *asked)
    assert re.search(r"spent [\d,]+ of [\d,]+ parameters \(9\d\.\d%\), .*; parameters bind\n", shown.out)
    assert "--budget 70% --max-params 40% --max-flops 39000000" in shown.out


def test_several_budgets_are_a_curve_of_the_plans_that_each_would_be(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path
) -> None:
    asked = ("plan", *RESNET20, "--lut", str(table_file), "--max-params", "90%", "--budget")
    picture = tmp_path / "curve.html"
    outcome = aap_hw(*asked, "1%,40%,60%,80%", "--plot", str(picture), "--json", "-")
    assert (outcome.code, outcome.err) == (0, "")
    out_of_reach, *points = json.loads(outcome.out)
    assert (out_of_reach["budget"], out_of_reach["plan"]) == ("1%", None)
    assert out_of_reach["refusal"].startswith("no plan reaches")
    assert [point["budget"] for point in points] == ["40%", "60%", "80%"]
    kept = [point["plan"]["kept_attention"] for point in points]
    assert kept == sorted(kept)
    alone = json.loads(aap_hw(*asked, "60%", "--json", "-").out)
    assert points[1]["plan"] == {**alone, "solver_seconds": ANY}
    assert all(text in picture.read_text("utf-8") for text in ("Trade-off curve", "resnet20 on x86", "unpruned"))


@pytest.mark.slow  # the figures are those of the test above
def test_a_curve_is_shown_as_a_table_and_drawn(aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path) -> None:
    asked = ("plan", *RESNET20, "--lut", str(table_file), "--budget")
    shown = aap_hw(*asked, "80%,1%,100%", "--plot", str(tmp_path / "curve.png"))
    assert (shown.code, shown.err) == (0, "")
    heading, first, second, third, refusal, table, *_ = shown.out.splitlines()
    assert heading.split() == ["budget", "predicted", "ms", "speed-up", "parameters", "attention", "kept"]
    assert re.match(r" *80% +\d\.\d{3} +1\.\d\dx +\d\d% +\d\d\.\d% +▇{8,16}$", first)
    assert second.split() == ["1%", "no", "plan"]
    assert third.split() == ["100%", "met", "unpruned"]
    assert refusal.startswith("1%: no plan reaches ")
    assert table.startswith("x86 (measured table): unpruned ")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--budget", "1%,100%"), "no plan reaches"),
        (("--budget", "900ms,100%"), "nothing needs pruning"),
        (("--budget", "60%,x"), "budget 'x' is not a number"),
        (("--budget", "60%", "--plot", "a.png"), "--plot draws the curve of several budgets"),
        (("--budget", "60%,40%", "--plot", "a.svg"), "neither a .png nor an .html file"),
    ],
)
def test_a_curve_that_cannot_be_is_refused(
    aap_hw: Callable[..., Any], table_file: Path, options: tuple[str, ...], sentence: str
) -> None:
    outcome = aap_hw("plan", *RESNET20, "--lut", str(table_file), *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert sentence in outcome.err


@pytest.mark.parametrize(
    "score",
    ["attention", "weight-l1", *(pytest.param(score, marks=pytest.mark.slow) for score in ("taylor", "bn-scale"))],
)
def test_filters_can_be_told_by_other_scores(aap_hw: Callable[..., Any], table_file: Path, score: str) -> None:
    asked = ("--lut", str(table_file), "--budget", "60%", "--json", "-")
    by_default = json.loads(aap_hw("plan", *RESNET20, *asked).out)
    outcome = aap_hw("plan", *RESNET20, *asked, "--score", score)
    assert (outcome.code, outcome.err) == (0, "")
    plan = json.loads(outcome.out)
    assert plan["groups"] != by_default["groups"]
    assert plan["predicted_ms"] <= plan["budget_ms"]


def test_weights_are_by_default_those_that_prune_takes(aap_hw: Callable[..., Any], table_file: Path) -> None:
    asked = ("--model", "resnet20", "--calibration-images", "8", "--lut", str(table_file), "--budget", "60%", "--json")

    def kept(*given: str) -> float:
        outcome = aap_hw("plan", *asked, *given)
        assert outcome.code == 0, outcome.err
        return float(json.loads(outcome.out)["kept_attention"])

    trained, untrained = kept("--weights", "embedded"), kept("--weights", "none")
    assert trained != untrained
    assert kept("--data", "embedded") == trained
    assert kept("--data", "embedded", "--weights", "none") == kept() == untrained


def test_memory_is_shown_in_megabytes_beside_the_other_budgets(aap_hw: Callable[..., Any], table_file: Path) -> None:
    asked = ("--lut", str(table_file), "--budget", "80%", "--max-memory", "60%")
    outcome = aap_hw("plan", *RESNET20, *asked, "--json", "-")
    assert (outcome.code, outcome.err) == (0, "")
    constraints = {each["resource"]: each for each in json.loads(outcome.out)["constraints"]}
    assert constraints["memory"]["spent"] <= constraints["memory"]["budget"]
    shown = aap_hw("plan", *RESNET20, *asked)
    assert re.search(r"spent .*\d\.\d{3} of \d\.\d{3} MB of memory \(\d+\.\d%\).* binds?", shown.out)
    assert "--budget 80% --max-memory 60%" in shown.out


def test_budgets_out_of_reach_are_answered_with_the_smallest_of_each(
    aap_hw: Callable[..., Any], table_file: Path
) -> None:
    outcome = aap_hw("plan", *RESNET20, "--lut", str(table_file), "--budget", "5%", "--max-params", "1%")
    assert (outcome.code, outcome.out) == (2, "")
    sentence, heading, latency, parameters = outcome.err.splitlines()
    assert sentence.startswith("aap-hw: error: no plan reaches")
    assert heading.split() == ["asked", "for", "smallest", "reachable", "alone"]
    assert re.search(r"latency +0\.\d+ ms +0\.\d+ ms \([\d.]+% of the unpruned network\)", latency)
    assert re.search(r"parameters +2697 +\d+ \([\d.]+% of", parameters)


def test_papers_threshold_can_choose_the_widths(aap_hw: Callable[..., Any], table_file: Path) -> None:
    asked = ("--lut", str(table_file), "--budget", "60%", "--score", "attention")
    outcome = aap_hw("plan", *RESNET20, *asked, "--allocator", "threshold", "--json", "-")
    assert (outcome.code, outcome.err) == (0, "")
    plan, exact = json.loads(outcome.out), json.loads(aap_hw("plan", *RESNET20, *asked, "--json", "-").out)
    assert json.loads(aap_hw("plan", *RESNET20, *asked[:4], "--allocator", "threshold", "--json", "-").out) == {
        **plan, "solver_seconds": ANY,
    }  # fmt: skip
    assert plan["predicted_ms"] <= plan["budget_ms"]
    assert plan["kept_attention"] < exact["kept_attention"]
    assert plan["gap"] is None
    by_flops = ("--allocator", "threshold", "--threshold-weights", "flops")
    shown = aap_hw("plan", *RESNET20, *asked, *by_flops)
    assert "--allocator threshold --threshold-weights flops" in shown.out
    refused = aap_hw("plan", *RESNET20, *asked, "--threshold-weights", "flops")
    assert (refused.code, refused.out) == (2, "")
    assert "add --allocator threshold" in refused.err


def test_groups_that_are_not_to_be_cut_stay_and_are_passed_on(aap_hw: Callable[..., Any], table_file: Path) -> None:
    asked = ("--lut", str(table_file), "--budget", "70%", "--only", "layer[23].*", "--skip", "*.0.conv1")
    plan = json.loads(aap_hw("plan", *RESNET20, *asked, "--json", "-").out)
    cut = {group["name"] for group in plan["groups"] if group["kept"] < group["width"]}
    inner = {f"layer{stage}.{block}.conv1" for stage in (2, 3) for block in (1, 2)}
    assert set() < cut <= inner | {"layer2.0.conv2", "layer3.0.conv2"}
    shown = aap_hw("plan", *RESNET20, *asked)
    assert "--only 'layer[23].*' --skip '*.0.conv1'" in shown.out.splitlines()[-1]
    assert re.search(r"^channel group +kind +width +kept *$", shown.out, re.MULTILINE)
    assert re.search(r"^layer2\.1\.conv1 +inner +32 +\d+ *$", shown.out, re.MULTILINE)
    assert " --no-renormalised" in aap_hw("plan", *RESNET20, *asked, "--no-renormalised").out.splitlines()[-1]
    refused = aap_hw("plan", *RESNET20, *asked, "--attention-cuts", "heads")
    assert (refused.code, refused.out) == (2, "")
    assert "resnet20 has no whole heads that can be cut: it has no attention with several heads; leave" in refused.err
    refused = aap_hw("plan", *RESNET20, *asked, "--skip", "layer4.*")
    assert refused.code == 2
    assert "--skip 'layer4.*' matches no channel group; the nearest are " in refused.err
    refused = aap_hw("plan", *RESNET20, *asked, "--skip", "kind:heads")
    assert (refused.code, refused.out) == (2, "")
    assert "--skip 'kind:heads' matches no channel group; the kinds of this network are output, " in refused.err


def test_without_any_budget_there_is_nothing_to_plan(aap_hw: Callable[..., Any], table_file: Path) -> None:
    outcome = aap_hw("plan", *RESNET20, "--lut", str(table_file))
    assert outcome.code == 2
    assert "give --budget 20ms, --max-params 40%, --max-flops 50% or --max-memory 5MB" in outcome.err


# What planning can do without: TVM takes two seconds to load, and none of the others is free.
NOT_FOR_PLANS = ("tvm", "torchao", "matplotlib", "plotly", "onnx", "onnxruntime", "timm", "tensorboard", "pandas")
PLANS_WELL_AND_PRUNES_BADLY = f"""
import json, sys
from aap_hw import activity
from aap_hw.cli.main import main
activity.PATIENCE_S = 1e6  # however slow the machine is
table, out, shipped, loaded = sys.argv[1:]
few = ["--calibration-images", "8", "--lut"]
untrained = ["--model", "mobilenetv2", "--weights", "none"]
assert main(["plan", *untrained, *few, shipped, "--budget", "60%", "--json", "-"]) == 0
with open(loaded, "w") as file:
    json.dump([name for name in {NOT_FOR_PLANS} if name in sys.modules], file)
model = ["--model", "resnet20", "--weights", "embedded"]
sys.exit(main(["prune", *model, *few, table, "--budget", "0.01ms", "--out", out]))
"""


@pytest.mark.slow
def test_real_process_loads_only_what_it_needs_and_adds_nothing_to_the_json_nor_to_the_one_line_of_an_error(
    table_file: Path, shipped_table: Path, tmp_path: Path
) -> None:
    """HiGHS writes past Python, so only another process's whole output shows it."""
    out, loaded = tmp_path / "run", tmp_path / "loaded"
    child = subprocess.run(
        [sys.executable, "-c", PLANS_WELL_AND_PRUNES_BADLY, table_file, out, shipped_table, loaded],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert child.returncode == 2, child.stderr
    assert json.loads(loaded.read_text()) == []
    plan = json.loads(child.stdout)
    assert plan["device"] == "x86"
    assert plan["gap"] <= 1e-4
    assert child.stderr.startswith("aap-hw: error: no plan reaches 0.01 ms")
    assert child.stderr.count("\n") == 1
    assert not out.exists()


def test_table_shows_every_group_and_the_next_command(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    outcome = aap_hw("plan", *RESNET20, "--lut", str(table_file), "--budget", "1ms")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    shown = {line.split()[0]: line for line in lines[1:]}
    for group in resnet20()[1].groups:
        assert str(group.width) in shown[group.name]
        if group.frozen:
            assert f"frozen: {group.frozen}" in shown[group.name]
    assert "x86 (measured table): unpruned" in outcome.out
    assert "budget 1.000 ms, predicted 0." in outcome.out
    assert "no inputs were given, so filters were ranked on stand-ins" in outcome.out
    asked = f"--model resnet20 --lut {table_file} --budget 1ms --weights embedded --calibration-images 8"
    assert lines[-1] == f"next: aap-hw prune {asked}"


def test_next_command_is_quoted_and_normalises_as_this_one(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path
) -> None:
    path = table_file.rename(tmp_path / "my table.json")
    data = ("--data", "embedded", "--normalise", "0.25/0.5")
    outcome = aap_hw("plan", *RESNET20, *data, "--lut", str(path), "--budget", "60%")
    assert (outcome.code, outcome.err) == (0, "")
    words = shlex.split(outcome.out.splitlines()[-1])
    assert words[words.index("--lut") + 1] == str(path)
    assert words[words.index("--normalise") + 1] == "0.25/0.5"


def test_prediction_is_quoted_with_the_error_of_the_table(aap_hw: Callable[..., Any], table_file: Path) -> None:
    command = ("plan", *RESNET20, "--lut", str(table_file), "--budget", "60%")
    assert json.loads(aap_hw(*command, "--json").out)["table_error"] is None
    assert "table error" not in aap_hw(*command).out
    table = load_table(table_file)
    for number, predicted_us in enumerate((980.0, 1050.0)):
        table.validation.append(
            Validation("resnet20", Inputs.of((3, 32, 32)), f"random-0-{number}", {}, predicted_us, 1000.0 + number)
        )
    save_table(table, table_file)
    error = json.loads(aap_hw(*command, "--json").out)["table_error"]
    assert (error["plans"], error["worst_pct"]) == (2, pytest.approx(4.9, abs=0.01))
    assert " ms (table error on 2 random plans: mean 3.4 %, worst 4.9 %), " in " ".join(aap_hw(*command).out.split())


def test_plan_in_int8_is_made_of_kernels_in_int8(aap_hw: Callable[..., Any], table_file: Path) -> None:
    command = ("plan", *RESNET20, "--lut", str(table_file), "--budget", "60%", "--precision", "int8")
    refused = aap_hw(*command)
    assert refused.code == 2
    assert "x86 is not of resnet20 at 3x32x32 in int8 but of resnet20 at 3x32x32: it lacks" in refused.err
    assert "with 'aap-hw profile --device x86 --model resnet20 --input 3x32x32 --precision int8'" in refused.err
    _, graph, _ = resnet20()
    network, table = partition(graph, INT8), load_table(table_file)
    table.points |= table_of(graph, network).points
    table.validation.append(Validation("resnet20", ORIGIN.inputs, "dense", network.dense, 900.0, 800.0, INT8))
    save_table(table, table_file)
    plan = json.loads(aap_hw(*command, "--json").out)
    assert (plan["precision"], plan["dense_ms"], plan["dense_is_measured"]) == ("int8", 0.8, True)
    assert plan["predicted_ms"] <= plan["budget_ms"] == pytest.approx(0.6 * 0.8)
    widths = {group["name"]: group["kept"] for group in plan["groups"]}
    left = [kernel for kernel in network.kernels if not kernel.is_removed(widths)]
    assert [shown["kernel"] for shown in plan["kernels"]] == [str(kernel.key) for kernel in left]
    shown = aap_hw(*command).out
    assert "x86 (measured table) in int8: unpruned 0.800 ms measured" in " ".join(shown.split())
    assert " --precision int8" in shown.splitlines()[-1]


def test_json_goes_to_the_file_that_is_named(aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    outcome = aap_hw("plan", *RESNET20, "--lut", str(table_file), "--budget", "0.001s", "--json", str(path))
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert json.loads(path.read_text())["budget_ms"] == 1.0


def test_table_that_was_not_measured_needs_a_word(aap_hw: Callable[..., Any], tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.json", provenance="emulated")
    command = ("plan", *RESNET20, "--lut", str(path), "--budget", "60%")
    refused = aap_hw(*command)
    assert (refused.code, refused.out) == (2, "")
    assert "are emulated, not measured on the device" in refused.err
    assert refused.err.count("\n") == 1
    allowed = aap_hw(*command, "--allow-emulated")
    assert (allowed.code, allowed.err) == (0, "")
    assert "x86 (emulated table)" in allowed.out
    assert re.search(r"predicted \d\.\d{3} ms \(emulated: no latency of the device\), ", allowed.out)


def test_shipped_table_is_found_by_its_name(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    table_file.rename(shipped / "x86.json")
    monkeypatch.setattr("aap_hw.resources.resource_dirs", lambda kind: [shipped] if kind == "lut" else [])
    monkeypatch.chdir(tmp_path)
    assert aap_hw("plan", *RESNET20, "--lut", "x86", "--budget", "60%").code == 0
    outcome = aap_hw("plan", *RESNET20, "--lut", "x68", "--budget", "60%")
    assert outcome.code == 2
    assert "there is no latency table 'x68' (there are tables for x86; or give the path of a file)" in outcome.err
    assert "did you mean 'x86'?" in outcome.err


@pytest.fixture
def shipped_table() -> Path:
    return next(folder / "x86.json" for folder in resource_dirs("lut") if (folder / "x86.json").exists())


def test_table_of_other_schedules_is_used_with_a_notice(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path
) -> None:
    document = json.loads(table_file.read_text())
    document["device"]["schedules"] -= 1
    (older := tmp_path / "older.json").write_text(json.dumps(document))
    for table, notices in (older, 1), (table_file, 0):
        for line in ("plan",), ("prune", "--quiet", "--out", str(tmp_path / table.stem)):
            result = aap_hw(*line, *RESNET20, "--lut", str(table), "--budget", "60%")
            assert result.code == 0, result.err
            assert result.err.count(f"the latencies in {table} are of kernels as another version") == notices


@pytest.mark.slow  # tests/prune/test_mixed.py plans for a smaller network
def test_a_plan_of_mixed_precisions_shows_that_of_each_group(aap_hw: Callable[..., Any], tmp_path: Path) -> None:
    _, graph, network = resnet20()
    table = table_of(graph, mixed_network(graph).everything)
    dense_us = predict_us(network, network.dense, table)
    table.validation.append(Validation("resnet20", ORIGIN.inputs, "dense", network.dense, dense_us, dense_us))
    path = tmp_path / "table.json"
    save_table(table, path)
    outcome = aap_hw("plan", *RESNET20, "--lut", str(path), "--budget", "60%", "--precision", "mixed", "--json", "-")
    assert (outcome.code, outcome.err) == (0, "")
    plan = json.loads(outcome.out)
    assert plan["predicted_ms"] <= plan["budget_ms"] == pytest.approx(0.6 * dense_us / 1e3, rel=1e-3)
    # The formula makes bytes as slow as float32, so that only conversions tell them apart, and exactness is for free.
    assert {group["precision"] for group in plan["groups"] if group["name"] != "linear"} == {"fp32"}
    assert plan["others_in"] == {"input of conv1": "fp32"}
    assert len(plan["float_layers"]) == 20
    for key, points in table.points.items():  # bytes are quick, also where the groups between them may not be cut
        if key.types.read == "uint8":
            table.points[key] = {at: replace(p, latency_us=0.3 * p.latency_us) for at, p in points.items()}
    save_table(table, path)
    asked = ("plan", *RESNET20, "--lut", str(path), "--budget", "60%", "--precision", "mixed")
    shown = aap_hw(*asked)
    assert re.search(r"^channel group +kind +width +kept +in", shown.out, re.MULTILINE)
    for row in (
        r"layer3\.1\.conv1 [a-z ]+\d+ +\d+ +int8",
        r"conv1 [a-z ]+16 +16 +int8 ",
        r"linear [a-z ]+10 +10 +frozen",
    ):
        assert re.search(f"^{row}", shown.out, re.MULTILINE), row
    assert "next: aap-hw prune" in shown.err + shown.out
    assert "--precision mixed" in shown.err + shown.out
    smaller = aap_hw(*asked, "--max-params", "30%")
    assert re.search(r"spent [\d,]+ of [\d,]+ parameters \((9\d|100)\.\d%\)", smaller.out), smaller.out + smaller.err
    small = aap_hw(*asked, "--max-memory", "8%")
    assert re.search(r"spent \d\.\d{3} of \d\.\d{3} MB of memory \((9\d|100)\.\d%\).*memory binds", small.out), small
    refused = aap_hw(*asked, "--max-memory", "0.1%")
    assert (refused.code, refused.out) == (2, "")
    assert re.search(r"memory +\d+ B +\d+ B \([\d.]+% of", refused.err), refused.err
