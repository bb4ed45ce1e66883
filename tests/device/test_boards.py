"""Proves how work is shared among boards that come and go; what they do with it is made up here, and they are too.

Real boards behind a real tracker are in ``tests/lut/test_several_boards.py``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from aap_hw.device import boards as module
from aap_hw.device import load_profile
from aap_hw.device.board import BoardLost, ServerAddress
from aap_hw.device.boards import LOSSES, Boards
from aap_hw.device.connection import Device, LocalDevice
from aap_hw.device.tracker import Registered
from aap_hw.errors import UserError
from aap_hw.processes import CannotStart


class MadeUpBoard:
    """A board that only says who it is."""

    def __init__(self, profile: Any, board: str, cpu: str) -> None:
        local = LocalDevice(profile)
        self.profile, self.target, self.board = profile, local.target, board
        self._description = replace(local.describe(), cpu=cpu)

    def describe(self) -> Any:
        return self._description

    def abort(self) -> None: ...

    def close(self) -> None: ...


Fleet = Callable[..., Boards]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> Fleet:
    """Boards with the given CPUs; one whose CPU is empty cannot be reached.

    With ``reboots``, a board is free again at the second time that the tracker is asked.
    """

    def make(*cpus: str, reboots: bool = False) -> Boards:
        addresses: list[ServerAddress | None] = [
            ServerAddress(f"board-{number}", 9090, ("x86",)) for number in range(len(cpus))
        ]

        class MadeUpTracker:
            def boards(self) -> Registered:
                return Registered(len(cpus), len(cpus), ())

            def request(self) -> ServerAddress:
                address = addresses.pop(0) if addresses else None
                if address is None:
                    raise BoardLost("no free board")
                return address

        def reach(profile: Any, target: Any, address: ServerAddress) -> MadeUpBoard:
            cpu = cpus[int(address.host.rpartition("-")[2])]
            if not cpu:
                addresses.append(address)
                raise BoardLost(f"{address} does not answer")
            if reboots:
                addresses.extend([None, address])
            return MadeUpBoard(profile, str(address), cpu)

        monkeypatch.setattr(module, "tracker_of", lambda _: MadeUpTracker())
        monkeypatch.setattr(module, "open_board", reach)
        monkeypatch.setattr(module, "SHORTEST_WAIT_S", 0.01)
        monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.02)
        monkeypatch.setattr(module, "TIMEOUTS_WITHOUT_BOARD", 0.3)
        profile = load_profile("x86")
        impatient = profile.model_copy(update={"connect": profile.connect.model_copy(update={"timeout_s": 1.0})})
        return Boards(impatient.reached_by("tracker://127.0.0.1:9190/x86"), told.append)

    return make


def test_each_item_is_done_once(fleet: Fleet) -> None:
    done: list[int] = []
    fleet("a", "a", "a").share(range(50), lambda _, item: done.append(item))
    assert sorted(done) == list(range(50))


def test_this_machine_does_all_in_order_and_in_the_calling_thread() -> None:
    done: list[int] = []
    Boards.of(LocalDevice(load_profile("x86"))).share(range(9), lambda _, item: done.append(item))
    assert done == list(range(9))


def test_item_of_a_lost_board_is_done_by_another_and_it_is_said(fleet: Fleet, told: list[str]) -> None:
    done: list[tuple[str | None, int]] = []

    def work(device: Device, item: int) -> None:
        if item == 3 and not told:
            raise BoardLost(f"{device.board} is gone")
        done.append((device.board, item))

    fleet("a", "a").share(range(8), work)
    assert sorted(item for _, item in done) == list(range(8))
    assert len(told) >= 1
    assert "is gone; what it was at is done again" in told[0]


def test_item_at_which_every_board_is_lost_ends_it_instead_of_losing_all_boards(fleet: Fleet) -> None:
    tried: list[int] = []

    def work(device: Device, item: int) -> None:
        tried.append(item)
        if item == 1:
            raise BoardLost("gone")

    boards = fleet("a", "a", "a", "a", "a")
    with pytest.raises(UserError, match=rf"{LOSSES} boards were lost one after the other at the same work; .* gone"):
        boards.share(range(3), work)
    assert tried.count(1) == LOSSES


def test_fault_of_the_work_itself_is_raised_where_it_was_asked_for(fleet: Fleet) -> None:
    def work(device: Device, item: int) -> None:
        raise ZeroDivisionError(item)

    with pytest.raises(ZeroDivisionError):
        fleet("a", "a").share(range(3), work)


def test_board_of_another_kind_is_named_and_not_used(fleet: Fleet, told: list[str]) -> None:
    used: set[str | None] = set()

    def work(device: Device, item: int) -> None:
        used.add(device.board)
        deadline = time.monotonic() + 10
        while item == 0 and not told and time.monotonic() < deadline:
            time.sleep(0.001)  # else all may be done before anybody has had a look at the other

    fleet("a", "b").share(range(20), work)
    assert used == {"board-0:9090"}
    (sentence,) = told
    assert "board-1:9090 is another kind, b instead of a" in sentence


def test_process_that_cannot_be_started_is_no_fault_of_a_board(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    boards, tried = fleet("a", "a"), threading.Event()

    def reach(*_: Any) -> None:
        tried.set()
        raise CannotStart("another process cannot be started")

    monkeypatch.setattr(module, "open_board", reach)
    with pytest.raises(CannotStart):
        boards.share(range(2), lambda *_: tried.wait(10))


def test_board_that_does_not_answer_at_first_is_not_needed(fleet: Fleet) -> None:
    done: list[int] = []
    fleet("", "a").share(range(5), lambda _, item: done.append(item))
    assert sorted(done) == list(range(5))


def test_without_any_board_there_is_nothing_to_begin_with(fleet: Fleet) -> None:
    with pytest.raises(UserError, match="does not answer"):
        fleet("", "")


def test_when_the_last_board_is_gone_it_ends_after_a_while(fleet: Fleet) -> None:
    def work(device: Device, item: int) -> None:
        raise BoardLost("gone")

    with pytest.raises(UserError, match=r"no board has answered for \d+ s; the last: no free board"):
        fleet("a").share([1], work)


def test_board_lost_at_work_that_takes_long_is_waited_for_as_long_as_any_other(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    tried: list[str | None] = []

    def work(device: Device, item: int) -> None:
        tried.append(device.board)
        if len(tried) == 1:
            now_s[0] += 1000.0
            raise BoardLost("gone")

    fleet("a", reboots=True).share([1], work)
    assert tried == ["board-0:9090"] * 2
