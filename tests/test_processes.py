"""A process that cannot be started is one sentence, and Ctrl-C is as it was."""

from __future__ import annotations

import signal

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
