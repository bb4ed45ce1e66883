"""Every way a command can end gives its exit code and one line; `--help` needs neither PyTorch nor TVM."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from aap_hw import __version__
from aap_hw.cli.main import COMMANDS, TURNS_OF_A_WAIT, LazyGroup, group
from aap_hw.errors import Fault, UserError
from aap_hw.resources import resource_dirs

AVAILABLE = group.list_commands(click.Context(group))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, aap_hw: Callable[..., Any]) -> Callable[..., Any]:
    """Call the command line with a sub-command ``fail`` that raises the given exception."""

    def call(failure: BaseException, *arguments: str) -> Any:
        @click.command()
        def fail() -> None:
            raise failure

        monkeypatch.setattr(LazyGroup, "list_commands", lambda self, ctx: ["fail"])
        monkeypatch.setattr(LazyGroup, "get_command", lambda self, ctx, name: fail)
        return aap_hw(*arguments, "fail")

    return call


def test_user_error_is_one_line_and_code_2(failing: Callable[..., Any]) -> None:
    outcome = failing(UserError("the table is\nfor another device"))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "aap-hw: error: the table is for another device\n"


def test_fault_of_ours_is_one_line_and_code_1_and_says_how_to_see_more(failing: Callable[..., Any]) -> None:
    outcome = failing(KeyError("x"))
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "aap-hw: internal error: KeyError: 'x'; for the traceback run: aap-hw --debug fail\n"


@pytest.mark.parametrize("failure", [EOFError("unexpected EOF"), BrokenPipeError(32, "Broken pipe")])
def test_error_of_a_pipe_is_neither_ctrl_c_nor_a_reader_that_is_gone(
    failing: Callable[..., Any], failure: Exception
) -> None:
    outcome = failing(failure)
    assert (outcome.code, outcome.out) == (1, "")
    assert re.fullmatch(f"aap-hw: internal error: {type(failure).__name__}: .*{failure.args[-1]}; .*\n", outcome.err)


def test_command_that_shows_the_traceback_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch, aap_hw: Callable[..., Any]
) -> None:
    command = click.Command("fail", params=[click.Argument(["path"])], callback=lambda path: [][0])
    monkeypatch.setattr(LazyGroup, "list_commands", lambda self, ctx: ["fail"])
    monkeypatch.setattr(LazyGroup, "get_command", lambda self, ctx, name: command)
    assert aap_hw("fail", "my  run's").err.partition("run: ")[2] == """aap-hw --debug fail 'my  run'"'"'s'\n"""


@pytest.mark.parametrize("failure", [ValueError(), ValueError("\n"), ValueError("")])
def test_exception_without_text_is_called_by_its_type(failing: Callable[..., Any], failure: Exception) -> None:
    assert failing(failure).err.startswith("aap-hw: internal error: ValueError; ")


def test_spaces_of_a_name_stay_as_they_are(failing: Callable[..., Any]) -> None:
    outcome = failing(UserError("there is no 'my  run' \n or\n\n 'yours'"))
    assert outcome.err == "aap-hw: error: there is no 'my  run' or 'yours'\n"


def test_fault_that_a_check_of_ours_found_is_one_sentence_and_code_1(failing: Callable[..., Any]) -> None:
    outcome = failing(Fault("the outputs differ"))
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "aap-hw: error: the outputs differ\n")


def test_debug_adds_the_traceback(failing: Callable[..., Any]) -> None:
    for failure, code in ((ZeroDivisionError("z"), 1), (UserError("u"), 2)):
        outcome = failing(failure, "--debug")
        assert outcome.code == code
        assert "Traceback" in outcome.err
        assert outcome.err.splitlines()[-1].startswith("aap-hw: ")


def test_ctrl_c_is_one_line_and_code_130(failing: Callable[..., Any]) -> None:
    outcome = failing(KeyboardInterrupt())
    assert outcome.code == 130
    assert outcome.err.strip() == "aap-hw: interrupted; no file is left half-written"
    outcome = failing(KeyboardInterrupt("the 412 points measured so far are kept"))
    assert outcome.err.strip() == "aap-hw: interrupted; the 412 points measured so far are kept"


def test_ctrl_c_that_a_library_makes_an_error_of_is_one_line_and_code_130(
    aap_hw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_in_another_language(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("the pass failed") from None

    monkeypatch.setattr("aap_hw.api.report", compile_in_another_language)
    before = signal.getsignal(signal.SIGINT)
    outcome = aap_hw("report", "runs/first")
    assert (outcome.code, outcome.err.strip()) == (130, "aap-hw: interrupted; no file is left half-written")
    assert signal.getsignal(signal.SIGINT) is before


def test_real_ctrl_c_ends_the_process_with_130() -> None:
    script = (
        "import sys, time, click\n"
        "from aap_hw.cli.main import group, main\n"
        "def wait(): print('ready', flush=True); time.sleep(60)\n"
        "type(group).get_command = lambda self, ctx, name: click.Command('wait', callback=wait)\n"
        "type(group).list_commands = lambda self, ctx: ['wait']\n"
        "sys.exit(main(['wait']))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=20)
    finally:
        child.kill()
    assert child.returncode == 130
    assert err.strip() == "aap-hw: interrupted; no file is left half-written"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("devcies",), "there is no sub-command 'devcies'; did you mean 'devices'? (see 'aap-hw --help')"),
        (("--wrong",), "(see 'aap-hw --help')"),
        (("devices", "--wrong"), "(see 'aap-hw devices --help')"),
        (("devices", "surplus"), "surplus"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    aap_hw: Callable[..., Any], arguments: tuple[str, ...], sentence: str
) -> None:
    outcome = aap_hw(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("aap-hw: error: ")
    assert outcome.err.count("\n") == 1
    assert sentence in outcome.err


def test_version_is_shown_with_those_of_torch_and_tvm(aap_hw: Callable[..., Any]) -> None:
    import torch
    import tvm

    shown = aap_hw("--version").out
    assert shown.startswith(f"aap-hw {__version__} (torch {torch.__version__.partition('+')[0]}")
    assert f"TVM {tvm.__version__}" in shown


def test_shell_completes_commands_devices_and_tables(aap_hw: Callable[..., Any], tmp_path: Path) -> None:
    (command := tmp_path / "aap-hw").write_text(f'#!/bin/sh\nexec {sys.executable} -m aap_hw.cli.main "$@"\n')
    command.chmod(0o755)
    script = aap_hw("completion", "bash").out
    for typed, expected in (
        ("aap-hw pr", {"profile", "prune"}),
        ("aap-hw doctor --device rp", {"rpi4", "rpi5"}),
        ("aap-hw plan --lut x", {"x86"}),
    ):
        asked = f"COMP_WORDS=({typed}); COMP_CWORD={len(typed.split()) - 1}; _aap_hw_completion {command}"
        lines = f'{script}\n{asked}\nprintf "%s\\n" "${{COMPREPLY[@]}}"\n'
        done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) >= expected, done.stderr


def test_profile_without_a_network_lists_what_it_can_measure(aap_hw: Callable[..., Any]) -> None:
    outcome = aap_hw("profile", "--device", "x86", "--out", str(resource_dirs("lut")[0] / "x86.json"))
    assert (outcome.code, outcome.err) == (2, "")
    assert re.search(r"\n  resnet20 +3x32x32\n", outcome.out)
    assert re.search(r"x86.json holds .*resnet20 at 3x32x32.* already\n", outcome.out)
    assert outcome.out.endswith("for example: aap-hw profile --device x86 --model mobilenetv2\n")


def test_profile_without_a_network_looks_for_the_table_of_a_profile_of_ones_own(
    aap_hw: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (resource_dirs("device_profiles")[0] / "x86.toml").read_text("utf-8")
    Path("mine.toml").write_text(text.replace('"x86"', '"all-cores"'))
    Path("lut").mkdir()
    shutil.copy(resource_dirs("lut")[0] / "x86.json", "lut/all-cores.json")
    outcome = aap_hw("profile", "--device", "mine.toml")
    assert (outcome.code, outcome.err) == (2, "")
    assert "lut/all-cores.json holds " in outcome.out
    assert outcome.out.endswith("aap-hw profile --device mine.toml --model mobilenetv2\n")
    assert "my.toml" in aap_hw("profile", "--device", "my.toml").err


def test_help_lists_every_sub_command_that_exists(aap_hw: Callable[..., Any]) -> None:
    outcome = aap_hw("--help")
    assert outcome.code == 0
    assert set(AVAILABLE) <= COMMANDS.keys()
    for name in AVAILABLE:
        assert f"\n  {name} " in outcome.out
    assert not re.search(r"\.\.\.$", outcome.out.split("Commands:")[1], re.MULTILINE), "a sentence is cut off"


@pytest.mark.parametrize("name", AVAILABLE)
def test_help_of_each_sub_command_ends_with_an_example(aap_hw: Callable[..., Any], name: str) -> None:
    outcome = aap_hw(name, "--help")
    assert outcome.code == 0
    assert outcome.out.rstrip().splitlines()[-1].startswith(f"    aap-hw {name}")


def test_import_and_help_load_neither_torch_nor_tvm() -> None:
    script = (
        "import sys, aap_hw\n"
        "from aap_hw.cli.main import COMMANDS, group, main\n"
        "import click\n"
        "main(['--help'])\n"
        "for name in group.list_commands(click.Context(group)): main([name, '--help'])\n"
        "print(sorted({'torch', 'tvm', 'scipy', 'numpy'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stderr.strip() == "[]"


def test_tables_are_read_without_torch_and_tvm() -> None:
    script = (
        "import sys\n"
        "from aap_hw.cli.main import main\n"
        "for given in ['list'], ['show', 'x86'], ['diff', 'x86', 'rpi4']: assert main(['lut', *given]) == 0\n"
        "from aap_hw.inputs import Inputs\n"
        "Inputs.parse('ids:int64:8,mask:bool:8')\n"  # as a table has it of a network that takes no image
        "print(sorted({'torch', 'tvm', 'plotly'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("set_by_the_user", "turns"),
    [
        ({}, TURNS_OF_A_WAIT),
        pytest.param({"GOMP_SPINCOUNT": "7"}, "7", marks=pytest.mark.slow),
        ({"OMP_WAIT_POLICY": "passive"}, "0"),
    ],
)
def test_threads_of_pytorch_spin_for_a_moment_unless_the_user_says_otherwise(
    set_by_the_user: dict[str, str], turns: str
) -> None:
    script = "import sys; sys.argv[1:] = ['--help']; from aap_hw.cli.main import main; main(); import torch"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = inherited | set_by_the_user | {"OMP_DISPLAY_ENV": "verbose"}
    child = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{turns}'" in child.stderr


def test_process_ends_without_searching_all_that_it_holds_for_garbage() -> None:
    script = (
        "import atexit, gc, sys\n"
        "from aap_hw.cli.main import main\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > len(gc.get_objects()), file=sys.stderr))\n"
        "sys.argv[1:] = ['devices']\n"
        "main()\n"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stderr.strip() == "True"


def test_reader_that_stops_early_gets_no_traceback() -> None:
    command = f"{sys.executable} -m aap_hw.cli.main devices --json | head -c 1"
    child = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert child.stdout == "["
    assert "Traceback" not in child.stderr
