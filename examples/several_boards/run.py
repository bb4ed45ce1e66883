"""Two servers on this machine share a profile through a tracker, as two boards would.

    python examples/several_boards/run.py [--quick]

Two servers on one computer disturb each other, so its latencies are of no use. With boards, start the servers there
(README.md) and give the tracker's address to ``aap-hw profile --connect``.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # what recipes share

from steps import QUICK_DEVICE, Steps
from tvm import rpc

HERE = Path(__file__).parent
HOST, KEY = "127.0.0.1", "board"
TRACKER, PORTS = 9190, (9091, 9093)
START_S = 60


def main() -> None:
    aap_hw = Steps(__doc__, device=str(QUICK_DEVICE), reaches=False)
    if not all(map(find_spec, ("tornado", "psutil", "cloudpickle"))):
        sys.exit("TVM's tracker and servers need packages that are missing here: pip install 'aap-hw[rpc]'")
    where = ("--connect", f"tracker://{HOST}:{TRACKER}/{KEY}")
    model = ("--model", str(HERE.parent / "keyword_spotting" / "net.py:make"), "--input", "1x4000")
    with two_boards():
        aap_hw.doctor(*where)
        aap_hw.profile(*where, *model, "--out", "lut/boards.json")
    aap_hw("lut", "show", "lut/boards.json")


@contextmanager
def two_boards() -> Iterator[None]:
    """A tracker and two servers, until the end."""
    started = [start("tvm.exec.rpc_tracker", TRACKER)]
    try:
        wait_for(0)
        started += [
            start("tvm.exec.rpc_server", port, "--tracker", f"{HOST}:{TRACKER}", "--key", KEY) for port in PORTS
        ]
        wait_for(len(PORTS))
        yield
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            process.wait()


def start(module: str, port: int, *options: str) -> subprocess.Popen[bytes]:
    """A module of TVM's as a program that listens on the loopback address only, in a group of its own."""
    here = ("--host", HOST, "--port", str(port), "--port-end", str(port + 1))
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1"} if module.endswith("server") else None
    return subprocess.Popen(
        [sys.executable, "-m", module, *here, *options],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def wait_for(boards: int) -> None:
    """Wait until the tracker knows of so many boards."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection((HOST, TRACKER), timeout=1).close()  # as TVM would warn, and wait for 5 s
            queues = rpc.connect_tracker(HOST, TRACKER).summary()["queue_info"]
            if queues.get(KEY, {}).get("free", 0) >= boards:
                return
        except (RuntimeError, OSError):  # it does not listen yet
            pass
        time.sleep(0.2)
    raise SystemExit(f"no tracker with {boards} boards at {HOST}:{TRACKER} after {START_S} s; is the port in use?")


if __name__ == "__main__":
    main()
