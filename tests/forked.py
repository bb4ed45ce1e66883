"""Python programs in processes of their own, forked from one that has imported PyTorch and TVM, which takes seconds.

Nothing of this package is imported beforehand: a program finds it as it would in a process that was started. A program
has ten minutes. `run` waits for its end; what `started` gives can be interrupted and killed meanwhile.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Reads a request a line. A program is forked, with a process group of its own, and answered with its process's number;
# a number with the exit code of that process, negative for a signal, or with nothing while it runs.
_PARENT = """
import json, os, runpy, signal, sys, tempfile
import torch, torchvision, tvm

places = sys.path[1:]
for line in sys.stdin:
    asked = json.loads(line)
    if "poll" in asked:
        ended, status = os.waitpid(asked["poll"], 0 if asked["wait"] else os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if ended else "", flush=True)
    elif (child := os.fork()) == 0:
        break
    else:
        os.setpgid(child, child)  # here, too, as nobody knows which of the two comes first
        print(child, flush=True)
else:
    sys.exit()
os.setpgid(0, 0)
signal.alarm(600)  # a program that hangs ends with this signal, and its test names it
program = asked
os.chdir(program["cwd"])
os.environ.clear()
os.environ.update(program["env"])
tempfile.tempdir = None  # which the environment tells
for stream, name in enumerate((os.devnull, program["out"], program["err"])):
    opened = os.open(name, os.O_RDWR | os.O_CREAT)
    os.dup2(opened, stream)
    os.close(opened)
sys.stdin, sys.argv = open(0), program["argv"]
sys.path[:] = [program["place"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *places]
if program["script"]:
    runpy.run_path(program["script"], run_name="__main__")
else:
    exec(compile(program["text"], "<string>", "exec"), {"__name__": "__main__"})
"""


def run(
    program: Path | str, arguments: Sequence[str] = (), *, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a file, or the text of a program, as ``python FILE ARGUMENTS`` or ``python -c TEXT`` would."""
    with started(program, arguments, cwd=cwd, env=env) as process:
        return subprocess.CompletedProcess(process.command, process.wait(), process.out, process.err)


@dataclass
class Process:
    """A program that runs, or has run."""

    command: list[str]
    pid: int
    folder: Path
    code: int | None = field(default=None, init=False)

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._code(wait=False)

    def wait(self) -> int:
        """The exit code, negative for a signal, when it has ended."""
        code = self._code(wait=True)
        assert code is not None
        return code

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds, which it must while the program runs."""
        while not condition():
            assert self.poll() is None, (self.out, self.err)
            time.sleep(0.005)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it started, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return (self.folder / "out").read_text("utf-8")

    @property
    def err(self) -> str:
        """What it has printed on standard error so far."""
        return (self.folder / "err").read_text("utf-8")

    def _code(self, wait: bool) -> int | None:
        if self.code is None and (answer := _answer({"poll": self.pid, "wait": wait})):
            self.code = int(answer)
        return self.code


@contextmanager
def started(
    program: Path | str, arguments: Sequence[str] = (), *, cwd: Path, env: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Start what `run` runs; it and all that it started is gone at the end."""
    is_file = isinstance(program, Path)
    command = [str(program) if is_file else "-c", *arguments]
    asked = {
        "script": str(program) if is_file else "",
        "text": "" if is_file else str(program),
        "place": str(Path(program).parent) if is_file else "",
        "argv": command,
        "cwd": str(cwd),
        "env": dict(env or os.environ),
    }
    with tempfile.TemporaryDirectory() as folder:
        places = {name: str(Path(folder) / name) for name in ("out", "err")}
        for place in places.values():
            Path(place).touch()
        process = Process(command, int(_answer({**asked, **places})), Path(folder))
        try:
            yield process
        finally:
            process.send(signal.SIGKILL)
            process.wait()


def _answer(asked: Mapping[str, Any]) -> str:
    parent = _parent()
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(json.dumps(asked) + "\n")
    parent.stdin.flush()
    return parent.stdout.readline().strip()


@functools.cache
def _parent() -> subprocess.Popen[str]:
    # Without the paths of this checkout, which would be those of all programs.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(parent.communicate)
    return parent
