"""Python programs in processes of their own, forked from one that has imported PyTorch and TVM, which takes seconds.

Nothing of this package is imported beforehand: a program finds it as it would in a process that was started. A program
has ten minutes. Programs that are killed, interrupted or measured are better started.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# Reads a program a line, forks, and answers with the exit code, negative for a signal.
_PARENT = """
import json, os, runpy, signal, sys
import torch, torchvision, tvm

places = sys.path[1:]
for line in sys.stdin:
    if (child := os.fork()) == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
signal.alarm(600)  # a program that hangs ends with this signal, and its test names it
program = json.loads(line)
os.chdir(program["cwd"])
os.environ.clear()
os.environ.update(program["env"])
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
        out, err = Path(folder) / "out", Path(folder) / "err"
        parent = _parent()
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(json.dumps({**asked, "out": str(out), "err": str(err)}) + "\n")
        parent.stdin.flush()
        code = int(parent.stdout.readline())
        return subprocess.CompletedProcess(command, code, out.read_text("utf-8"), err.read_text("utf-8"))


@functools.cache
def _parent() -> subprocess.Popen[str]:
    # Without the paths of this checkout, which would be those of all programs.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(parent.communicate)
    return parent
