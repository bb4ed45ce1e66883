"""A process that cannot be started is one sentence, and Ctrl-C is as it was."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aap_hw.errors import UserError
from aap_hw.processes import ctrl_c_blocked


# What multiprocessing says if the process that it forks from ended, as for want of memory.
@pytest.mark.parametrize("failure", [EOFError("unexpected EOF"), BrokenPipeError(), ConnectionRefusedError()])
def test_process_that_cannot_be_started_is_one_sentence(failure: Exception) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError, match=r"^another process cannot be started, .*ulimit -u\)$"), ctrl_c_blocked():
        raise failure
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_process_does_not_run_the_script_again_that_starts_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom aap_hw.processes import FORKED, ctrl_c_blocked\nprint('script', flush=True)\n"
        "FORKED.set_forkserver_preload([])\nwith ctrl_c_blocked():\n"
        "    process = FORKED.Process(target=print, args=('process',))\n    process.start()\n"
        "process.join()\nsys.exit(process.exitcode or sys.modules['__main__'].__file__ != __file__)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "script\nprocess\n"), done.stderr
