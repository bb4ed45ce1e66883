"""What all tests share: one thread a process, interrupts, repeatable property tests, a way to call the command line."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

# Before anything imports NumPy, PyTorch or TVM, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TVM_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# A shell that runs the tests in the background has their interrupts ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a first call may import or compile. Under CI the examples are the same every time.
settings.register_profile("aap-hw", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("aap-hw")


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


@dataclass(frozen=True)
class Outcome:
    """What a person sees of one call of the command line."""

    code: int
    out: str
    err: str


@pytest.fixture
def aap_hw(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call the command line in this process: ``aap_hw("devices", "--json").code == 0``."""
    from aap_hw.cli.main import main

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
