"""A run holds a board only while it measures there: others may use it meanwhile, and are waited for.

The board is a real server behind a real tracker, whose kernels sleep instead of running; so that compiling takes no
time either, a network of two layers stands for each that is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tvm import rpc

from aap_hw.compile.library.lowering import compile_network
from aap_hw.errors import UserError
from aap_hw.prune import job as jobs
from aap_hw.prune import measuring, steps
from aap_hw.prune.events import Event
from aap_hw.prune.job import EMBEDDED, Job, Limit, resume, start
from aap_hw.prune.task import PruneSettings
from aap_hw.train.settings import TrainSettings
from tests.deploy.tiny import network
from tests.device import servers
from tests.device.servers import Server
from tests.device.sleeping import SleepingClock
from tests.synthetic import ORIGIN, of_this_device, table

SETTINGS = PruneSettings(
    rounds=2, calibration_images=8, training=TrainSettings(epochs=1, batch_size=32, learning_rate=0.01)
)


@pytest.fixture
def tracker() -> Iterator[Server]:
    with servers.tracker() as tracker, servers.board("x86", tracker, clock=SleepingClock(us=200)):
        yield tracker


@pytest.fixture
def job(tracker: Server, quick: None, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(
        measuring, "compile_network", lambda _, image, *where: compile_network(network(), image, *where)
    )
    monkeypatch.setattr(steps, "ATTEMPTS", 1)
    where = f"tracker://127.0.0.1:{tracker.port}/x86"
    return Job(ORIGIN, EMBEDDED, {"latency": Limit(0.6, True)}, settings=SETTINGS, connect_to=where)


@pytest.mark.slow
def test_board_is_free_while_a_run_trains_and_waited_for_when_others_use_it(
    job: Job, tracker: Server, tmp_path: Path
) -> None:
    events: list[str] = []
    others: list[Any] = []

    def on_event(event: Event) -> None:
        if event.name != "step":
            events.append(event.name)
        if event.name == "epoch" and not others:
            servers.wait_until_free(tracker, "x86")
            others.append(rpc.connect_tracker("127.0.0.1", tracker.port).request("x86"))
        if event.name == "waiting":
            assert "has no free board with the key 'x86'" in event.figures["reason"]
            others[0] = None  # the others' session ends with it

    pruned = start(job, table(**of_this_device()), tmp_path / "run", on_event)
    assert events == ["start", "cut", "epoch", "round", "waiting", "measured", "cut", "epoch", "round"]
    assert pruned.summary["dense_is_measured"]


@pytest.mark.slow  # test_resume goes on without a device in less time
def test_run_that_measures_goes_on_only_where_it_can_and_says_so(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(event: Event) -> None:
        if event.name == "epoch":
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        start(replace(job, settings=replace(SETTINGS, rounds=1)), table(**of_this_device()), run, interrupt)
    monkeypatch.setattr(jobs, "device_of", lambda *_: (None, "nobody answers"))
    with pytest.raises(
        UserError, match=r"measures on x86, which is not to be had: nobody answers; make it so, then 'a"
    ):
        resume(run)
