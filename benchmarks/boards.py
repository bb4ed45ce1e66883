"""How long a profile takes with one board, with two, and with two of which one dies or hangs half way.

The boards are real RPC servers behind a real tracker, and their kernels sleep instead of running: two cores are not two
boards. Timed is the measuring of points, from the first one's start, before it is compiled, to the last; what follows,
a few whole networks, is done by one board whatever there is. ``with_start_s`` also holds what precedes it: the network
is traced, compilers start and the reference kernel is compiled, which takes as long with any number of boards. At the
default each point takes 0.64 s, two visits of four calls of it and four of the reference kernel, somewhat more than
points of real networks (``profile_cost.py``); but those are hundreds and not 28, so what boards cannot share weighs
more here.

    python benchmarks/boards.py --json -
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aap_hw.lut.library_cache import LibraryCache

sys.path.insert(0, str(Path(__file__).parent.parent))  # the servers are those of the tests

# One board and two are timed in turn, so often; the medians are compared.
TURNS = 3


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from _report import cache_of, print_report, say

    options = _options()
    rows = []
    if not options.quick:
        say("once before, as what is imported and traced for the first time takes seconds")
        _profile(1, "none", kernel_ms=1.0)
    undisturbed = [(1, "none"), (2, "none")] * (1 if options.quick else TURNS)
    for boards, disturbance in (*undisturbed, (2, "kill"), (2, "stop")):
        say(f"{boards} boards, disturbance: {disturbance}")
        rows.append(_profile(boards, disturbance, options.kernel_ms, cache_of(options.quick)))
    alone, two, killed, hung = (
        statistics.median(row["points_s"] for row in rows if (row["boards"], row["disturbance"]) == case)
        for case in ((1, "none"), (2, "none"), (2, "kill"), (2, "stop"))
    )
    summary = {
        "speed_up": alone / two,
        "with_one_killed_by_one_alone": killed / alone,
        "with_one_hung_by_one_alone": hung / alone,
        "points_lost": sum(row["points_lost"] for row in rows),
    }
    print_report(rows, summary, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel-ms", type=float, default=40.0, help="how long each call of a kernel sleeps")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="short sleeps: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.kernel_ms = 1.0
    return options


def _profile(boards: int, disturbance: str, kernel_ms: float, cache: LibraryCache | None = None) -> dict[str, Any]:
    from aap_hw.device.boards import Boards
    from aap_hw.lut.profiling import profile_model
    from aap_hw.lut.subject import Workload
    from tests.device import servers
    from tests.device.sleeping import SleepingClock
    from tests.lut import tiny

    quick = tiny.device().profile
    profile = quick.model_copy(update={"connect": quick.connect.model_copy(update={"timeout_s": 5.0})})
    with servers.tracker() as tracker, tempfile.TemporaryDirectory() as folder:
        clock = SleepingClock(us=1e3 * kernel_ms)
        fleet = [servers.board("x86", tracker, clock=clock) for _ in range(boards)]
        disturb = {"none": lambda: None, "kill": fleet[-1].kill, "stop": fleet[-1].stop}[disturbance]
        several = Boards(profile.reached_by(f"tracker://127.0.0.1:{tracker.port}/x86"))
        watch = _Watch(disturb, tiny.POINTS // 2)
        try:
            # A tolerance below any error: every point is measured, none is interpolated.
            table = profile_model(
                Workload("tiny", tiny.Tiny(), tiny.INPUT), several, Path(folder) / "table.json",
                on_progress=watch, tolerance=-1.0, networks=0, cache=cache,
            )  # fmt: skip
        finally:
            several.close()
            for server in fleet:
                server.kill()
    return {
        "boards": boards,
        "disturbance": disturbance,
        "kernel_ms": kernel_ms,
        "points": len(table),
        "points_lost": tiny.POINTS - len(table),
        "points_s": watch.seconds,
        "with_start_s": watch.with_start_s,
    }


class _Watch:
    """How long it takes until all points are measured, and something that happens half way."""

    def __init__(self, disturb: Callable[[], None], when: int) -> None:
        self._disturb, self._when = disturb, when
        self._made, self._began = time.perf_counter(), 0.0
        self.seconds = self.with_start_s = 0.0

    def __call__(self, progress: Any) -> None:
        now = time.perf_counter()
        self._began = self._began or now
        if progress.what != "points":
            self.seconds = self.seconds or now - self._began
            self.with_start_s = self.with_start_s or now - self._made
        elif progress.measured == self._when:
            self._disturb()


if __name__ == "__main__":
    main()
