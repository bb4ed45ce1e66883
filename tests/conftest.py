"""What all tests share: folders of their own, one thread a process, interrupts, repeatable property tests, which skips
are failures, a way to call the command line.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

# Before anything imports NumPy, PyTorch or TVM, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TVM_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.needs import is_expected

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# A shell that runs the tests in the background has their interrupts ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a first call may import or compile. Under CI the examples are the same every time.
settings.register_profile("aap-hw", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("aap-hw")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option with which CI runs, and how much is tried at random."""
    parser.addoption("--no-unexpected-skips", action="store_true", help="fail on skips that tests/needs.py lacks")
    parser.addoption(
        "--random-kernels", type=int, default=42, help="random kernels to compare with PyTorch's operators"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep what tests write out of the user's folders, and how the user likes output to look out of what they compare.

    The processes of pytest-xdist inherit the folder, so that a kernel that one of them compiled is there for all.
    """
    if hasattr(config, "workerinput"):
        return
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        os.environ.pop(name, None)
    # The emulated board is 200 MB and made once.
    os.environ.setdefault("AAP_HW_EMULATED_BOARD", str(Path.home() / ".cache" / "aap-hw" / "emulated-board"))
    home = tempfile.TemporaryDirectory(prefix="aap-hw-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(home.cleanup)
    os.environ["HOME"] = home.name
    os.environ["XDG_CACHE_HOME"] = str(Path(home.name) / ".cache")
    os.environ.pop("XDG_CONFIG_HOME", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a failure of a skip that was not to be expected."""
    return _without_unexpected_skip(item.config, (yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Make a failure of a file that was not to be skipped as a whole."""
    return _without_unexpected_skip(collector.config, (yield))


def _without_unexpected_skip(config: pytest.Config, report: Report) -> Report:
    if config.option.no_unexpected_skips and report.skipped and not hasattr(report, "wasxfail"):
        _, _, reason = report.longrepr
        if not is_expected(reason):
            report.outcome, report.longrepr = "failed", f"{reason} (unexpected with --no-unexpected-skips)"
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a download, unless it is asked for."""
    if "board" not in config.option.markexpr:
        boards = [item for item in items if "board" in item.keywords]
        items[:] = [item for item in items if item not in boards]
        config.hook.pytest_deselected(items=boards)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell what tests found worth telling, such as how long something took that a person waits for."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(autouse=True)
def same_weights_every_time() -> None:
    """Draw the same random weights and inputs in a test whatever ran before it, so that a failure can be repeated."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@dataclass(frozen=True)
class Outcome:
    """What a person sees of one call of the command line."""

    code: int
    out: str
    err: str


@pytest.fixture
def aap_hw(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Call the command line in this process: ``aap_hw("devices", "--json").code == 0``."""
    from aap_hw import activity
    from aap_hw.cli.main import main

    # How long a test takes, and what is told meanwhile, is the machine's affair.
    monkeypatch.setattr(activity, "PATIENCE_S", 1e6)

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
