"""Work in processes that are killed, and what of a run has to be the same however often it was.

Processes are forks of one that has imported everything, so that killing a hundred takes seconds.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aap_hw.prune.run import RunFolder

# What may differ: when it was, and how long it took.
TIMES = ("seconds", "solver_seconds")


def in_child(work: Callable[[], object], kill_after_s: float = math.inf) -> tuple[int, float]:
    """Work in a process of its own, killed when it has had so much CPU; its exit code, and its CPU."""
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        code = 1
        # After a fork PyTorch makes its thread pool anew at first use, and two threads that do so at once abort.
        torch.set_num_threads(1)
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return wait(pid, kill_after_s)


def wait(pid: int, kill_after_s: float = math.inf) -> tuple[int, float]:
    """Wait for a child, and kill it when it has had so much CPU: other programs then shift no moment.

    The exit code is negative if a signal ended it.
    """
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        if cpu_s(pid) >= kill_after_s:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def cpu_s(pid: int) -> float:
    """CPU that a process has had, in seconds."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def result(folder: Path) -> dict[str, Any]:
    """What has to be the same, however often a run was killed."""
    run = json.loads((folder / "run.json").read_text())
    events = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    network = RunFolder(folder).load()
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in network.module.state_dict().items()},
        "kept": network.kept,
        "rounds": [{k: v for k, v in each.items() if k not in TIMES} for each in run["record"]["rounds"]],
        "summary": json.loads((folder / "summary.json").read_text()),
        "events": [event for event in events if event != "resumed"],
    }
