"""Several boards of one kind, among which work is shared; what a lost board was at, another does.

A board that is lost is tried again after a while, longer each time: it may be rebooting. This machine is the board of a
profile that says so; it is never lost, and its work is done by the calling thread, one piece after the other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from aap_hw.compile.library.linking import command_of
from aap_hw.device.board import BoardLost, RemoteDevice, ServerAddress
from aap_hw.device.conditions import Conditions
from aap_hw.device.connection import Device, LocalDevice, open_board, server_of, target_of, tracker_of
from aap_hw.device.description import DeviceDescription
from aap_hw.device.profile import DeviceProfile
from aap_hw.errors import UserError
from aap_hw.files import require_loading_from_temporary
from aap_hw.processes import CannotStart

# A piece of work at which so many boards were lost is what loses them.
LOSSES = 3
SHORTEST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
# Without any board for so many times the patience for one answer, it is over: a reboot takes about a minute.
TIMEOUTS_WITHOUT_BOARD = 4
# What has trained or compiled for long waits for a board that others use meanwhile.
PATIENCE_S = 3600.0

Item = TypeVar("Item")
Notify = Callable[[str], None]


@dataclass
class _Place:
    """Where a board is or was, and how to reach it again."""

    find: Callable[[], ServerAddress]
    device: RemoteDevice | None = None


class Boards:
    """The boards of a profile, or this machine: how all but the doctor reach a device.

    Attributes
    ----------
    at_once : how many pieces of work are done at once, at most.
    """

    def __init__(
        self, profile: DeviceProfile, notify: Notify = lambda _: None, patience_s: float | None = None
    ) -> None:
        """Reach at least one board.

        Parameters
        ----------
        patience_s
            For how long work waits while no board answers or all are taken, by default for as long as a reboot takes.

        Raises
        ------
        UserError : no board answers, the one that does is not as the profile says, or nothing here links for it.
        """
        self.profile, self.target, self._notify = profile, target_of(profile), notify
        self._patience_s = patience_s
        self._local: Device | None = None
        self._places: list[_Place] = []
        if profile.connect.kind == "local":
            self._local = LocalDevice(profile)
            self._description = self._local.describe()
            return
        self._places = _places_of(profile)
        self._description = self._first()

    @classmethod
    def of(cls, device: Device | Boards) -> Boards:
        """A single device that is there already, as boards; boards as they are."""
        if isinstance(device, Boards):
            return device
        boards = cls.__new__(cls)
        boards.profile, boards.target = device.profile, device.target
        boards._notify, boards._patience_s = lambda _: None, None
        boards._local, boards._places, boards._description = device, [], device.describe()
        return boards

    def require_tools(self) -> None:
        """See before the work whether this machine can compile for the device, and load that if it is the device.

        Raises
        ------
        UserError : there is no linker, or the temporary folder cannot be used.
        """
        command_of(self.target.host)
        if self._local is not None:
            require_loading_from_temporary()

    @property
    def at_once(self) -> int:
        """How many pieces of work are done at once, at most."""
        return max(1, len(self._places))

    @property
    def compile_meanwhile(self) -> bool:
        """Whether compilers do not disturb what is measured, because it is measured elsewhere."""
        return self._local is None

    def describe(self) -> DeviceDescription:
        """What a latency measured here depends on; the same for all boards."""
        return self._description

    def conditions(self) -> Conditions:
        """Clock and heat of one of the boards now."""
        if self._local is not None:
            return self._local.conditions()
        try:
            return next((p.device.conditions() for p in self._places if p.device is not None), Conditions())
        except BoardLost:
            return Conditions()

    def share(self, items: Sequence[Item], work: Callable[[Device, Item], None]) -> None:
        """Do a piece of work for each item, in their order, on whichever board is free.

        ``work`` is called again for an item, with another board, when its board was lost meanwhile. Each board
        has a thread of its own.

        Raises
        ------
        BoardLost : no board is left, or boards were lost at the same item again and again.
        CannotStart : this machine has no room for the process of another board's session.
        """
        if self._local is not None:
            for item in items:
                work(self._local, item)
        elif items:
            _Sharing(self, items, work).finish()

    def close(self) -> None:
        """End all sessions: the boards are free for others. What is shared later begins new ones."""
        for place in self._places:
            if place.device is not None:
                place.device.close()
                place.device = None

    def _first(self) -> DeviceDescription:
        problem: UserError | None = None
        for place in self._places:
            try:
                place.device = open_board(self.profile, self.target, place.find())
                self.profile = place.device.profile
                return place.device.describe()
            except BoardLost as lost:
                problem = lost
        assert problem is not None
        raise problem

    def _open(self, place: _Place) -> RemoteDevice:
        if place.device is None:
            device = open_board(self.profile, self.target, place.find())
            if (other := device.describe()) != self._description:
                device.close()
                raise UserError(
                    f"the board at {device.board} is another kind, {other.cpu} instead of {self._description.cpu}; "
                    "give it a profile and a tracker key of its own"
                )
            place.device = device
        return place.device


class _Sharing(Generic[Item]):
    """One call of ``Boards.share``."""

    def __init__(self, boards: Boards, items: Sequence[Item], work: Callable[[Device, Item], None]) -> None:
        self._boards, self._work = boards, work
        self._left: deque[tuple[Item, int]] = deque((item, 0) for item in items)
        self._in_hand = 0
        self._problem: BaseException | None = None
        self._changed = threading.Condition()
        self._refused: set[int] = set()
        self._last_answer = time.monotonic()

    def finish(self) -> None:
        """Return when all is done."""
        threads = [threading.Thread(target=self._tend, args=(place,), daemon=True) for place in self._boards._places]
        for thread in threads:
            thread.start()
        try:
            with self._changed:
                while not self._is_over():
                    self._changed.wait()
        except BaseException as problem:
            self._end(problem)
            raise
        if self._problem is not None:
            raise self._problem

    def _is_over(self) -> bool:
        return self._problem is not None or not (self._left or self._in_hand)

    def _tend(self, place: _Place) -> None:
        """Work for one board, until all is done. It is held only once there is something for it to do."""
        failures = 0
        while (taken := self._take()) is not None:
            item, losses = taken
            try:
                device = self._boards._open(place)
            except BoardLost as lost:
                self._give_back(item, losses)
                failures += 1
                if failures == 1:
                    self._boards._notify(f"{lost}; it is tried again now and then")
                if self._give_up(lost) or self._wait(failures):
                    return
                continue
            except CannotStart as problem:
                self._end(problem)
                return
            except UserError as refused:
                self._give_back(item, losses)
                self._refuse(place, refused)
                return
            except BaseException as problem:
                self._end(problem)
                return
            failures = 0
            self._answered()
            try:
                self._work(device, item)
            except BoardLost as lost:
                # It was there as long as it worked, however long that took.
                self._answered()
                place.device = None
                failures = 1
                self._give_back(item, losses + 1)
                self._lost(lost, losses + 1)
                if self._wait(failures):
                    return
            except BaseException as problem:
                self._end(problem)
                return
            else:
                self._done()

    def _take(self) -> tuple[Item, int] | None:
        with self._changed:
            # Even when nothing is left, what others have in hand may come back.
            while not self._left and not self._is_over():
                self._changed.wait()
            if self._is_over():
                return None
            self._in_hand += 1
            return self._left.popleft()

    def _answered(self) -> None:
        with self._changed:
            self._last_answer = time.monotonic()

    def _done(self) -> None:
        with self._changed:
            self._in_hand -= 1
            self._last_answer = time.monotonic()
            self._changed.notify_all()

    def _give_back(self, item: Item, losses: int) -> None:
        with self._changed:
            if self._is_over():
                return
            self._in_hand -= 1
            self._left.appendleft((item, losses))
            self._changed.notify_all()

    def _lost(self, lost: BoardLost, losses: int) -> None:
        if losses == LOSSES:
            self._end(BoardLost(f"{losses} boards were lost one after the other at the same work; the last: {lost}"))
        else:
            self._boards._notify(f"{lost}; what it was at is done again, by whichever board answers")

    def _refuse(self, place: _Place, refused: UserError) -> None:
        self._boards._notify(f"{refused}; it is not used")
        with self._changed:
            self._refused.add(id(place))
            nobody = len(self._refused) == len(self._boards._places)
        if nobody:
            self._end(refused)

    def _give_up(self, lost: BoardLost) -> bool:
        """End it all if no board has answered for long."""
        with self._changed:
            silent_s = time.monotonic() - self._last_answer
            alive = any(place.device is not None for place in self._boards._places)
        usual_s = TIMEOUTS_WITHOUT_BOARD * self._boards.profile.connect.timeout_s
        if alive or silent_s < (self._boards._patience_s or usual_s):
            return False
        self._end(BoardLost(f"no board has answered for {silent_s:.0f} s; the last: {lost}"))
        return True

    def _wait(self, failures: int) -> bool:
        """Wait before a board is tried again; whether all is over by then."""
        limit_s = min(LONGEST_WAIT_S, self._boards.profile.connect.timeout_s)
        with self._changed:
            return self._changed.wait_for(self._is_over, min(limit_s, SHORTEST_WAIT_S * 2 ** (failures - 1)))

    def _end(self, problem: BaseException) -> None:
        with self._changed:
            if self._problem is None:
                self._problem = problem
            self._changed.notify_all()
        for place in self._boards._places:
            if place.device is not None:
                place.device.abort()


def _places_of(profile: DeviceProfile) -> list[_Place]:
    if profile.connect.kind == "rpc":
        server = server_of(profile)
        return [_Place(lambda: server)]
    tracker = tracker_of(profile)
    return [_Place(tracker.request) for _ in range(tracker.boards().total)]
