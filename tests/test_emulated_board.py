"""What ``scripts/emulated_board.sh`` leaves alone on the machine it is started on. It fetches nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "emulated_board.sh"
# Docker's repository is for Debian and none of Debian's; a mirror may have any name.
TARGETS = r"""
case $1 in
  indextargets) printf '%s\n' 'Docker|https://download.docker.com/linux/debian/ bookworm' \
    'Debian|http://mirror.example/stable/ bookworm' ;;
  *) exit 100 ;;
esac
"""
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Calls the script on a machine that has all programs it asks for, with a board in the folder ``a board``."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {"qemu-aarch64": "", "aarch64-linux-gnu-g++": "", "dpkg": "", "apt-get": TARGETS}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}")
        (programs / name).chmod(0o755)

    def called(*words: str, board: str = "a board") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "AAP_HW_EMULATED_BOARD": board}
        return subprocess.run(
            [SCRIPT, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return called


@pytest.mark.parametrize("command", [("up",), ("run", "python3"), ("remove",)], ids=" ".join)
def test_folder_that_is_no_board_is_not_deleted(script: Script, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "a board").mkdir()
    (tmp_path / "a board" / "thesis.txt").write_text("years of work")
    done = script(*command)
    assert (done.returncode, "a board is no emulated board and not empty" in done.stderr) == (2, True), done
    assert (tmp_path / "a board" / "thesis.txt").read_text() == "years of work"


def test_packages_are_those_of_debian_alone_and_an_interrupted_board_is_built_anew_and_removed(
    script: Script, tmp_path: Path
) -> None:
    for _ in range(2):
        done = script("up")
        assert (done.returncode, "cannot read the package lists for arm64" in done.stderr) == (2, True), done
        (source,) = (tmp_path / "a board" / "apt" / "sources.list").read_text().splitlines()
        assert source.endswith("] http://mirror.example/stable/ bookworm main")
        assert f'Dir::State "{tmp_path}/a board/apt"' in (tmp_path / "a board" / "apt" / "apt.conf").read_text()
    assert script("remove").returncode == 0
    assert not (tmp_path / "a board").exists()


@pytest.mark.parametrize("is_ours", [True, False])
def test_process_is_ended_only_if_it_is_the_one_that_was_started(script: Script, tmp_path: Path, is_ours: bool) -> None:
    run = tmp_path / "a board" / "run"
    run.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        began = int(Path(f"/proc/{process.pid}/stat").read_text().split()[21])
        (run / "board0.pid").write_text(f"{process.pid}\n")
        (run / "board0.began").write_text(f"{began if is_ours else began - 1}\n")
        (run / "board0.port").write_text("9100\n")
        said = script("status").stdout
        assert said.split()[:2] == (["board0", "--connect"] if is_ours else ["board0", "has"])
        # A group has its number until somebody waited for it.
        threading.Thread(target=process.wait, daemon=True).start()
        assert script("down").returncode == 0
        assert (process.poll() is not None) is is_ours
        process.kill()
    assert process.returncode == (-signal.SIGTERM if is_ours else -signal.SIGKILL)
    assert list(run.iterdir()) == []
