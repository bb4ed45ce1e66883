"""Whatever a machine lacks or refuses: exit code 2 and one line on standard error, from every command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aap_hw.prune.job import Job, Limit, start
from aap_hw.prune.task import PruneSettings
from tests.cli.failing import RESNET20, fails
from tests.disks import remount
from tests.synthetic import ORIGIN, of_this_device, table, write_table

ROOT = Path(__file__).resolve().parents[2]

COMPILING: dict[str, tuple[str, ...]] = {
    "profile": ("profile", "--device", "x86", "--model", "resnet20", "--out", "NEW"),
    "lut validate": ("lut", "validate", "--device", "x86", "--model", "resnet20", "--lut", "TABLE"),
    "compile": ("compile", "--device", "x86", "--model", "resnet20", "--out", "NEW"),
    "prune": ("prune", *RESNET20, "--lut", "TABLE", "--budget", "50%", "--out", "NEW"),
}


@pytest.mark.parametrize("name", COMPILING)
@pytest.mark.usefixtures("quick")
def test_without_a_compiler_nothing_is_begun(
    name: str, aap_hw: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    table = write_table(tmp_path / "table.json", **of_this_device())
    places = {"TABLE": str(table), "NEW": str(tmp_path / "new")}
    fails(
        aap_hw(*(places.get(argument, argument) for argument in COMPILING[name])), "takes a C.. compiler, and the path"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_doctor_names_the_missing_compiler(aap_hw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    outcome = aap_hw("doctor", "--device", "x86")
    assert outcome.code == 2
    assert re.search(r"^WRONG linker: +linking compiled code takes a C\+\+ compiler", outcome.out, re.MULTILINE)


def test_doctor_names_the_temporary_folder_that_it_ran_something_from(
    aap_hw: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = aap_hw("doctor", "--device", "x86").out
    assert re.search(rf"^ok +linker: .*; a library that it made in {tmp_path} was loaded and run$", found, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "sentence"), [("noexec", "nothing may be run from"), ("ro", "no temporary folder")]
)
@pytest.mark.usefixtures("quick")
def test_without_a_temporary_folder_that_things_run_from_nothing_is_begun(
    options: str,
    sentence: str,
    aap_hw: Callable[..., Any],
    mounted: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = mounted(options)
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    fails(aap_hw("profile", "--device", "x86", "--model", "resnet20", "--out", str(tmp_path / "new.json")), sentence)
    assert not (tmp_path / "new.json").exists()


WRITING: dict[str, tuple[str, ...]] = {
    "devices": ("devices", "--json", "DISK/x.json"),
    "doctor": ("doctor", "--device", "x86", "--json", "DISK/x.json"),
    "lut show": ("lut", "show", "TABLE", "--json", "DISK/x.json"),
    "lut plot": ("lut", "plot", "TABLE", "--out", "DISK/x.html"),
    "lut diff": ("lut", "diff", "TABLE", "OTHER", "--out", "DISK/x.html"),
    "lut merge": ("lut", "merge", "TABLE", "OTHER", "--out", "DISK/x.json"),
    "plan": ("plan", *RESNET20, "--lut", "TABLE", "--budget", "50%", "--json", "DISK/x.json"),
    "profile": ("profile", "--device", "x86", "--model", "resnet20", "--out", "DISK/x.json"),
    "prune": ("prune", *RESNET20, "--lut", "TABLE", "--budget", "50%", "--out", "DISK/run"),
    "report": ("report", "RUN", "--out", "DISK/x.html"),
}


@pytest.mark.parametrize("state", ["full", "read-only"])
@pytest.mark.parametrize("name", WRITING)
@pytest.mark.usefixtures("quick")
def test_disk_that_nothing_can_be_written_to_is_one_sentence(
    name: str,
    state: str,
    aap_hw: Callable[..., Any],
    mounted: Callable[[str], Path],
    pruned: Path,
    tmp_path: Path,
    table_file: Path,
) -> None:
    disk = mounted("size=4k")
    (disk / "filler").write_bytes(bytes(4096))
    if state == "read-only":
        remount(disk, "ro")
    places = {
        "TABLE": str(table_file),
        "OTHER": str(write_table(tmp_path / "other.json", date="2026-02-02")),
        "RUN": str(pruned),
    }
    arguments = [places.get(each, each.replace("DISK", str(disk))) for each in WRITING[name]]
    outcome = aap_hw(*arguments)
    why = "No space left on device; " if state == "full" else "(is read-only|Read-only file system); "
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome
    assert re.search(f"^aap-hw: error: cannot .*{disk}.*{why}", outcome.err)
    if state == "read-only":
        assert outcome.out == "", "told before the work"
    assert [path.name for path in disk.iterdir() if path.is_file()] == ["filler"]


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is finished."""
    job = Job(ORIGIN, None, {"latency": Limit(0.5, True)}, settings=PruneSettings(calibration_images=8))
    return start(job, table(), tmp_path_factory.mktemp("runs") / "half").folder


STREAMS = {
    "a reader that ends": (
        "aap-hw COMMAND | head -c 0; exit ${PIPESTATUS[0]}",
        "the program that reads the output ended before",
    ),
    "a full disk": ("aap-hw COMMAND > /dev/full", "the output cannot be written: No space left on device; make room"),
    "closed": ("aap-hw COMMAND >&-", "standard output is closed; send it to a file"),
}


@pytest.mark.parametrize("command", ["devices", "devices --json", "--help"])
@pytest.mark.parametrize("name", STREAMS)
def test_output_that_cannot_be_written_is_one_sentence(name: str, command: str) -> None:
    script, sentence = STREAMS[name]
    outcome = shell(script.replace("COMMAND", command))
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert re.fullmatch(f"aap-hw: error: {sentence}.*\n", outcome.stderr)


def test_file_of_a_command_without_standard_error_holds_its_output_alone(tmp_path: Path, table_file: Path) -> None:
    outcome = shell(f"aap-hw lut merge {table_file} --out {tmp_path}/new.json 2>&-")
    assert (outcome.returncode, outcome.stdout, (tmp_path / "new.json").exists()) == (2, "", False)
    assert shell(f"aap-hw lut diff {table_file} {table_file} --json {tmp_path}/new.json >&- 2>&-").returncode == 2


@pytest.mark.parametrize("letters", ["ascii", "latin-1"])
def test_terminal_without_unicode_gets_all_that_it_can_show(letters: str, table_file: Path) -> None:
    outcome = shell(f"PYTHONIOENCODING={letters} aap-hw lut show {table_file} --points", encoding=letters)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert (r" \xb1 " if letters == "ascii" else " ± ") in outcome.stdout


def shell(script: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``aap-hw`` is this checkout."""
    define = f'aap-hw() {{ {sys.executable} -m aap_hw.cli.main "$@"; }}'
    return subprocess.run(
        ["bash", "-c", f"{define}; {script}"],
        capture_output=True,
        encoding=encoding,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


PRINTING = """
from torch import nn
print("imported")
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        print("made")
        self.layer = nn.Conv2d(3, 8, 3)
    def forward(self, x):
        print("called")
        return self.layer(x)
"""


def test_what_a_network_prints_is_no_result(
    aap_hw: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(PRINTING)
    outcome = aap_hw("compile", "--device", "x86", "--model", "net.py:Net", "--input", "3x8x8")
    assert outcome.code == 0
    assert {"imported", "made", "called"} == set(outcome.err.splitlines())
    assert not {"imported", "made", "called"} & set(outcome.out.splitlines())


PRINTS = """
import ctypes, os, subprocess, sys, click
from aap_hw.cli.main import group, main
from aap_hw.cli.output import tell
from aap_hw.cli.streams import results_alone

@results_alone
def work():
    print("a module")
    os.write(1, b"a library\\n")
    ctypes.CDLL(None).printf(b"a library that holds back what it prints\\n")
    subprocess.run(["echo", "a program"])
    tell("the result")
    if "fails" in sys.argv:
        sys.exit("the code of a network")

type(group).get_command = lambda self, ctx, name: click.Command("work", callback=work)
type(group).list_commands = lambda self, ctx: ["work"]
code = main(["work"])
print("afterwards")
sys.exit(code)
"""


def test_whoever_prints_standard_output_is_for_results_alone() -> None:
    outcome = shell(f"env -u PYTHONUNBUFFERED {sys.executable} -c '{PRINTS}'")
    assert (outcome.returncode, outcome.stdout) == (0, "the result\nafterwards\n")
    held_back = "a library that holds back what it prints\n"
    assert outcome.stderr == f"a module\na library\na program\n{held_back}"


def test_what_is_printed_while_the_process_ends_is_no_result() -> None:
    ends = PRINTS.replace('main(["work"])', "main()").replace('print("afterwards")', "")
    ends = ends.replace("def work():", 'def work():\n    __import__("atexit").register(print, "the end")')
    outcome = shell(f"{sys.executable} -c '{ends}' work")
    assert (outcome.returncode, outcome.stdout) == (0, "the result\n")
    assert outcome.stderr.endswith("the end\n")


def test_code_that_ends_the_program_is_one_sentence() -> None:
    outcome = shell(f"{sys.executable} -c '{PRINTS}' fails")
    assert (outcome.returncode, outcome.stdout) == (2, "the result\nafterwards\n")
    assert outcome.stderr.splitlines()[-1] == (
        "aap-hw: error: the network's code ended the program (SystemExit: the code of a network); let it return instead"
    )


def test_working_folder_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    outcome = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; aap-hw devices")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert (
        outcome.stderr == "aap-hw: error: the working folder is gone (No such file or directory); change to another\n"
    )
