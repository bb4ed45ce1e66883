"""What CI adds to ``make test``: it installs what tests need, leaves none out, and a skip that nobody expects fails.

Nothing is installed here: ``.ci/run`` finds only programs of these tests on its path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import needs

ROOT = Path(__file__).parent.parent
PACKAGES = ["g++-aarch64-linux-gnu", "chromium", "dataset-fashion-mnist"]


@dataclass
class Machine:
    """A folder of programs, which is all that a machine has."""

    programs: Path

    def has(self, name: str, script: str) -> None:
        """Add a program, which writes down how it was called."""
        program = self.programs / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>"${{0%/*}}/calls"\n{script}\n')
        program.chmod(0o755)

    def runs_ci(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / ".ci" / "run"],
            cwd=self.programs, env={"PATH": str(self.programs)}, input="typed\n", capture_output=True, text=True,
            timeout=20, check=False,
        )  # fmt: skip

    def calls(self, name: str) -> list[str]:
        lines = (self.programs / "calls").read_text().splitlines()
        return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Debian whose user is root and on which one of the packages is installed."""
    for name in ("bash", "cat", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    machine = Machine(tmp_path)
    machine.has(
        "dpkg-query", 'for last; do :; done; [ "$last" = chromium ] && printf installed || printf not-installed'
    )
    machine.has("id", "echo 0")
    machine.has("apt-get", "exit 0")
    machine.has("make", 'cat; pwd; echo "$PYTEST_ADDOPTS"')
    return machine


def test_ci_installs_what_is_missing_and_tests_with_no_skip_allowed(machine: Machine) -> None:
    done = machine.runs_ci()
    assert (done.returncode, done.stdout.splitlines()) == (0, 2 * [str(ROOT), " --no-unexpected-skips"])
    assert machine.calls("make") == ["docs", "test-all"]
    update, install = machine.calls("apt-get")
    assert update == "update"
    assert install == "install -y --no-install-recommends g++-aarch64-linux-gnu dataset-fashion-mnist"


def test_ci_leaves_a_machine_alone_that_has_all_or_whose_user_is_not_root(machine: Machine) -> None:
    machine.has("id", "echo 1000")
    assert machine.runs_ci().returncode == 0
    machine.has("id", "echo 0")
    machine.has("dpkg-query", "printf installed")
    assert machine.runs_ci().returncode == 0
    assert machine.calls("apt-get") == []
    assert machine.calls("make") == 2 * ["docs", "test-all"]


def test_ci_fails_as_make_fails_and_tests_even_if_nothing_can_be_installed(machine: Machine) -> None:
    machine.has("apt-get", "exit 100")
    machine.has("make", "exit 3")
    done = machine.runs_ci()
    assert done.returncode == 3
    assert (
        done.stderr == "apt-get could not install g++-aarch64-linux-gnu dataset-fashion-mnist: "
        "the tests that need them fail\n"
    )


def test_no_test_is_left_out_by_what_ci_makes() -> None:
    """Only those of an emulated board, which is downloaded: tests/conftest.py leaves them out of every other run."""
    some, every = (_pytest_command(target) for target in ("test", "test-all"))
    assert some == f'{every} -m "not slow"'
    assert not re.search(r" (-m|-k|--deselect|--ignore)\b(?! pytest)", every)


def _pytest_command(target: str) -> str:
    made = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in made.splitlines() if " -m pytest " in line)
    return line


def test_ci_installs_every_package_that_a_test_may_need() -> None:
    reasons = [mark.kwargs["reason"] for name, mark in vars(needs).items() if name.startswith("needs_")]
    named = [re.search(r"apt-get install (\S+)$", each)[1] for each in reasons if not needs.is_expected(each)]
    assert sorted(named) == sorted(PACKAGES)
    assert f"packages=({' '.join(PACKAGES)})" in (ROOT / ".ci" / "run").read_text()


SKIPS = """
import pytest
@pytest.mark.parametrize("reason", [{expected!r}, "needs a rare thing"])
def test_skip(reason):
    pytest.skip(reason)
@pytest.mark.skipif(True, reason="needs another")
def test_mark(): ...
@pytest.mark.xfail(reason="known")
def test_known():
    assert False
"""


@pytest.mark.parametrize("option", [[], ["--no-unexpected-skips"]], ids=["allowed", "not allowed"])
def test_skip_that_nobody_expects_fails_where_it_was_asked_for(option: list[str], tmp_path: Path) -> None:
    expected = next(iter(needs.EXPECTED_SKIPS))
    (tmp_path / "test_skips.py").write_text(SKIPS.format(expected=expected))
    (tmp_path / "test_whole.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", *option]
    done = subprocess.run(
        [*command, "--rootdir", tmp_path, "--continue-on-collection-errors"],
        cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = done.stdout.splitlines()[-1]
    if option:
        assert done.returncode == 1
        assert re.search("1 failed, 1 skipped, 1 xfailed, 2 errors in", last), done.stdout
        for reason in ("needs a rare thing", "needs another", "could not import 'no_such_module'"):
            assert re.search(rf"Skipped: {reason}.* \(unexpected with --no-unexpected-skips\)", done.stdout)
    else:
        assert done.returncode == 0
        assert re.search("4 skipped, 1 xfailed in", last), done.stdout
