"""How far a job on a device is, for whoever shows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """How many things this run has measured.

    Attributes
    ----------
    what : what is measured one by one: ``points`` or ``networks``.
    measured : how many this run has measured so far.
    total : how many this run has to measure, as far as it knows; grows where measured points show that those
        between them are needed too.
    kept : how many were there before this run.
    seconds_left : how long the rest may take; None as long as too little has been measured to tell.
    """

    what: str
    measured: int
    total: int
    kept: int
    seconds_left: float | None


ProgressCallback = Callable[[Progress], None]

# Whole batches are compiled before the first of their points is timed, so the first few points seem far too slow.
ENOUGH_TO_TELL, ENOUGH_SHARE = 32, 0.1


@dataclass
class Clock:
    """Counts what is measured, and says how long the rest may take."""

    what: str
    kept: int
    report: ProgressCallback
    _began: float = field(default_factory=time.monotonic)
    _measured: int = 0

    @property
    def measured(self) -> int:
        """How many things have been counted."""
        return self._measured

    def start(self, total: int) -> None:
        """Report that ``total`` things are to be measured."""
        self.report(Progress(self.what, self._measured, total, self.kept, None))

    def count(self, total: int, number: int = 1) -> None:
        """Report that ``number`` more of a ``total`` are measured."""
        self._measured += number
        enough = self._measured >= min(ENOUGH_TO_TELL, ENOUGH_SHARE * total)
        left = (time.monotonic() - self._began) / self._measured * (total - self._measured) if enough else None
        self.report(Progress(self.what, self._measured, total, self.kept, left))
