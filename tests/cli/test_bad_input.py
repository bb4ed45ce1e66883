"""Whatever is wrong with what was typed: exit code 2, one line on standard error, nothing else, nothing written.

What is wrong with files that are given is in `test_bad_files`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.failing import RESNET20, fails

BUDGETS = {
    **{
        text: rf"a budget must be more than zero, not '{text}'; type for example '20ms', '0\.02s' or '55%'"
        for text in ("0", "0ms", "0%", "-5ms", "-5%")
    },
    "20": "type '20ms' for milliseconds",
    "20xs": "unknown unit 'xs'",
    "150%": "more than the unpruned network takes",
    "": "not a number with a unit",
    "fast": "not a number with a unit",
    "0,5ms": "the decimal sign is a point",
    "nanms": "not a number",
    "1e999ms": "too large",
    "100%": r"nothing needs pruning: the unpruned network takes 1\.\d+ ms and the budget is 1\.\d+ ms",
    "20ms": "nothing needs pruning: the unpruned network takes .* ms and the budget is 20 ms",
    "0.01ms": r"no plan reaches 0\.01 ms: the smallest reachable latency is 0\.\d+ ms \([\d.]+% of the unpruned",
    "1%": r"no plan reaches 0\.01\d+ ms: the smallest reachable latency is",
}


@pytest.mark.parametrize("command", ["plan", "prune"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.usefixtures("quick")
def test_budget(aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, command: str, budget: str) -> None:
    out = ("--out", str(tmp_path / "run")) if command == "prune" else ()
    fails(aap_hw(command, *RESNET20, "--lut", str(table_file), "--budget", budget, *out), BUDGETS[budget])
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.usefixtures("quick")
def test_smallest_latency_that_is_named_can_be_asked_for(aap_hw: Callable[..., Any], table_file: Path) -> None:
    command = ("plan", *RESNET20, "--lut", str(table_file), "--budget")
    named = re.search(r"is ([\d.]+) ms \(([\d.]+)%", aap_hw(*command, "1%").err)
    assert named is not None
    for budget in (f"{named[1]}ms", f"{named[2]}%"):
        assert aap_hw(*command, budget).code == 0


COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "no table": (("plan", "--model", "resnet20", "--budget", "50%"), "Missing option '--lut'"),
    "no model to plan": (("plan", "--lut", "TABLE", "--budget", "50%"), "Missing option '--model'"),
    "no model to prune": (("prune", "--lut", "TABLE", "--budget", "50%"), "Missing option '--model'"),
    "no table to prune with": (("prune", "--model", "resnet20", "--budget", "50%"), "Missing option '--lut'"),
    "no budget": (
        ("prune", "--model", "resnet20", "--lut", "TABLE"),
        "there is nothing to prune to: give --budget 20ms",
    ),
    "no such file": (
        ("plan", "--model", "resnet20", "--lut", "nowhere/x86.json", "--budget", "50%"),
        "cannot read the latency table nowhere/x86.json: No such file",
    ),
    "no such shipped table": (
        ("plan", "--model", "resnet20", "--lut", "x87", "--budget", "50%"),
        "there is no latency table 'x87'",
    ),
    "a folder": (("lut", "show", "FOLDER"), "cannot read the latency table .*: Is a directory"),
    "model": (
        ("plan", "--model", "resnet21", "--lut", "TABLE", "--budget", "50%"),
        r"no model named 'resnet21' \(known: .*\); did you mean 'resnet",
    ),
    "no device to profile on": (("profile", "--model", "vgg"), "Missing option '--device'"),
    "model to profile": (("profile", "--device", "x86", "--model", "vgg"), "no model named 'vgg'"),
    "weights to profile": (
        ("profile", "--device", "x86", "--model", "resnet20", "--weights", "mine"),
        "there are no weights 'mine'",
    ),
    "weights": (
        ("prune", "--model", "resnet20", "--weights", "mine", "--lut", "TABLE", "--budget", "50%"),
        "there are no weights 'mine'",
    ),
    "weights of another model": (
        ("plan", "--model", "resnet18", "--weights", "embedded", "--lut", "TABLE", "--budget", "50%"),
        "resnet18 has no embedded weights; those that have: resnet20",
    ),
    "data": (
        ("prune", "--model", "resnet20", "--data", "cifar", "--lut", "TABLE", "--budget", "50%"),
        "'cifar' is no source of images",
    ),
    "download of nothing": (
        ("prune", "--model", "resnet20", "--download", "--lut", "TABLE", "--budget", "50%"),
        "--download fetches the images of --data; add --data",
    ),
    "data of other classes": (
        (
            "prune",
            "--model",
            "mobilenetv2",
            "--weights",
            "none",
            "--data",
            "embedded",
            "--lut",
            "TABLE",
            "--budget",
            "50%",
        ),
        "mobilenetv2 tells 1000 classes apart and the samples are of 10",
    ),
    "input that is no shape": (
        ("plan", "--model", "resnet20", "--input", "3xAx32", "--lut", "TABLE", "--budget", "50%"),
        "'3xAx32' is not an input: write the shape of one sample",
    ),
    "type that no network takes": (
        ("plan", "--model", "resnet20", "--input", "float16:3x32x32", "--lut", "TABLE", "--budget", "50%"),
        "an input cannot be float16: give one of float32, int64",
    ),
    "several inputs of a network of one": (
        ("plan", "--model", "resnet20", "--input", "3x32x32,3x32x32", "--lut", "TABLE", "--budget", "50%"),
        "resnet20 takes one image, not 3x32x32,3x32x32",
    ),
    "input and example": (
        (
            "plan",
            "--model",
            "resnet20",
            "--input",
            "3x32x32",
            "--example",
            "a.npz",
            "--lut",
            "TABLE",
            "--budget",
            "50%",
        ),
        "--example says what the network takes; leave --input out",
    ),
    "example that is not there": (
        ("plan", "--model", "resnet20", "--example", "nowhere.npz", "--lut", "TABLE", "--budget", "50%"),
        "cannot read the example nowhere.npz: No such file",
    ),
    "input": (
        ("plan", "--model", "resnet20", "--input", "224", "--lut", "TABLE", "--budget", "50%"),
        "write channels, height and width like",
    ),
    "channels": (
        ("plan", "--model", "resnet20", "--input", "1x32x32", "--lut", "TABLE", "--budget", "50%"),
        "takes images of 3 channels, not 1; write --input 3x32x32",
    ),
    "another input size": (
        ("plan", "--model", "resnet20", "--input", "3x24x24", "--lut", "TABLE", "--budget", "50%"),
        "x86 is not of resnet20 at 3x24x24 but of resnet20 at 3x32x32: .*--input 3x24x24",
    ),
    "rounds": (
        ("prune", "--model", "resnet20", "--rounds", "0", "--lut", "TABLE", "--budget", "50%"),
        "0 is not in the range",
    ),
    "learning rate": (
        ("prune", "--model", "resnet20", "--learning-rate", "0", "--lut", "TABLE", "--budget", "50%"),
        "not in the range",
    ),
    "a number in words": (
        ("prune", "--model", "resnet20", "--lut", "TABLE", "--budget", "50%", "--learning-rate", "fast"),
        "'fast' is not a valid number",
    ),
    "half an epoch": (
        ("prune", "--model", "resnet20", "--lut", "TABLE", "--budget", "50%", "--epochs", "2.5"),
        "'2.5' is not a valid integer",
    ),
    "a long seed": (
        ("prune", "--model", "resnet20", "--lut", "TABLE", "--budget", "50%", "--seed", "9" * 20),
        "seed is 9{20}; give one of at most 18 digits",
    ),
    "device": (("deploy", "RUN", "--device", "x68"), "there is no device 'x68' .*did you mean 'x86'?"),
    "board": (
        ("deploy", "RUN", "--device", "rpi4", "--connect", "tracker://127.0.0.1:1/rpi4"),
        "tracker at 127.0.0.1:1 cannot be reached .* start it with",
    ),
    "board to profile": (
        ("profile", "--device", "rpi5", "--model", "resnet20", "--connect", "rpc://127.0.0.1:1"),
        "nothing listens at 127.0.0.1:1; start the server there",
    ),
    "connect": (
        ("profile", "--device", "rpi5", "--model", "resnet20", "--connect", "pi:9090"),
        "'pi:9090' is no way to reach a device; write",
    ),
    "table in an impossible folder": (
        ("profile", "--device", "x86", "--model", "resnet20", "--out", "TABLE/x86.json"),
        "table.json is not a folder; choose another",
    ),
    "opset": (
        ("export", "RUN", "--onnx", "FOLDER/x.onnx", "--opset", "8"),
        "PyTorch .* writes ONNX opsets 9 to 23, not 8; give --opset one of these, or leave it out",
    ),
    "opset to come": (
        ("export", "RUN", "--onnx", "FOLDER/x.onnx", "--opset", "40"),
        "writes ONNX opsets 9 to 23, not 40",
    ),
    "run": (("deploy", "RUN", "--device", "x86"), "there is no run folder .*RUN; 'aap-hw prune' makes one"),
    "sub-command": (("lut", "shwo", "TABLE"), "there is no sub-command 'shwo'; did you mean 'show'"),
    "option": (("plan", "--bugdet", "50%", "--lut", "TABLE"), "there is no option '--bugdet'; did you mean '--budget'"),
    "accuracy without images": (
        ("prune", "--model", "resnet20", "--max-accuracy-drop", "1", "--lut", "TABLE"),
        "an accuracy can only be kept by training: add --data",
    ),
    "no training, and how": (
        (
            "prune",
            "--model",
            "resnet20",
            "--data",
            "embedded",
            "--no-training",
            "--epochs",
            "2",
            "--budget",
            "9ms",
            "--lut",
            "TABLE",
        ),
        "--no-training trains nothing, so --epochs would do nothing",
    ),
    "resume what never began": (("prune", "--resume", "FOLDER"), "holds no run that was begun, so there is nothing"),
    "resume with other wishes": (
        ("prune", "--resume", "RUN", "--epochs", "9", "--seed", "1"),
        "--resume goes on with what the run was asked for; leave --epochs, --seed out",
    ),
    "report of no run": (("report",), "Missing argument 'RUN"),
    "report of a folder that is not there": (("report", "RUN"), "there is no run folder .*RUN; 'aap-hw prune' makes"),
    "report of a folder without a run": (("report", "FOLDER"), "holds no finished run"),
    "report of one run twice": (("report", "RUN", "RUN"), "a run is given twice; give each folder once"),
    "merge of one table": (("lut", "merge", "TABLE", "--out", "FOLDER/out.json"), "merging takes two tables or more"),
    "merge over a table": (("lut", "merge", "TABLE", "TABLE", "--out", "TABLE"), "exists already; give --out another"),
    "picture of another kind": (("lut", "plot", "TABLE", "--out", "FOLDER/x.svg"), "neither a .png nor an .html file"),
    "picture of no kernel": (
        ("lut", "plot", "TABLE", "--out", "FOLDER/x.png", "--kernel", "lstm"),
        "no kernel of several widths whose key contains 'lstm'",
    ),
    **{
        f"--precision {text}": (
            ("plan", *RESNET20, "--lut", "TABLE", "--budget", "50%", "--precision", text),
            sentence,
        )
        for text, sentence in {
            "bf16": "'bf16' is not one of 'fp32', 'half', 'int8', 'mixed', 'mixed:int8,half'",
            "mixed:haf,int8": r"mix int8 with half or fp32; 'haf' is no precision; did you mean 'half'\?",
            "mixed:int8": "one precision leaves nothing to choose; give --precision int8, or name two",
            "mixed:fp32, half": "plans mix int8 with another; give --precision half, which loses next to nothing",
            "mixed:half,int8,fp32": "plans mix two precisions so far; give mixed:int8,half",
            "mixed:half,int8": r"the CPU of .* has no instructions for half precision .*; compile for fp32 or int8",
            "mixed:fp32,int8": r"--model resnet20 --input 3x32x32 --precision mixed' \(and",
        }.items()
    },
    "difference to no table": (("lut", "diff", "TABLE", "nowhere.json"), "cannot read the latency table nowhere.json"),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("quick")
def test_command(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    arguments, sentence = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    places = {
        "TABLE/x86.json": f"{table_file}/x86.json",
        "TABLE": str(table_file),
        "FOLDER": str(tmp_path),
        "FOLDER/out.json": f"{tmp_path}/out.json",
        "FOLDER/x.svg": f"{tmp_path}/x.svg",
        "FOLDER/x.png": f"{tmp_path}/x.png",
        "FOLDER/x.onnx": f"{tmp_path}/x.onnx",
        "RUN": str(tmp_path / "RUN"),
    }
    fails(aap_hw(*(places.get(argument, argument) for argument in arguments)), sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
@pytest.mark.usefixtures("quick")
def test_folder_that_cannot_be_made(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aap_hw.prune.job.prune", None)
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / below)
    fails(
        aap_hw("prune", *RESNET20, "--lut", str(table_file), "--budget", "50%", "--out", out),
        "cannot write to the folder .*: .*file is not a folder; choose another",
    )
    json_out = ("--json", str(tmp_path / "file" / "plan.json"))
    fails(aap_hw("plan", *RESNET20, "--lut", str(table_file), "--budget", "50%", *json_out), "cannot write .*plan.json")
    fails(aap_hw("lut", "show", str(table_file), *json_out), "cannot write .*plan.json")
