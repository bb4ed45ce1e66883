"""The adaptive controller of Automatic Attention Pruning (arXiv 2303.08595): prune on, or roll back and step less.

How hard a round prunes is one number, its severity: the paper's threshold T, or how often the latency is halved.
After a round that meets the objective the next one is harder by a step. After one that does not, the last good round
is taken up again with half the step. When that has failed three times, the good round itself is tried again and no
longer relied on.

A pure state machine: what a round does, and what its weights are, is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# Failures in a row from one good round before the round before it is taken up.
MOST_FAILURES = 3


@dataclass(frozen=True)
class GoodRound:
    """A round that met the objective, and how it was reached."""

    number: int
    severity: float
    step: float


@dataclass(frozen=True)
class Controller:
    """Where the search stands between two rounds.

    Parameters
    ----------
    severity
        How hard the next round prunes.
    step
        By how much the round after it is harder, if it meets the objective.
    start
        Number of the round whose weights and widths the next round starts from.
    good
        Rounds that met the objective and were not given up, the latest last; the unpruned network is the first.
    failures
        How often in a row a round from the latest good one has failed.
    """

    severity: float
    step: float
    start: int
    good: tuple[GoodRound, ...]
    failures: int = 0

    @classmethod
    def begin(cls, step: float) -> Controller:
        """Before the first round that prunes; round 0 is the unpruned network.

        Raises
        ------
        ValueError
            If the step is not positive.
        """
        if not step > 0:
            raise ValueError(f"a step must be positive, not {step}")
        return cls(step, step, 0, (GoodRound(0, 0.0, step),))

    def harder(self) -> Controller:
        """The same, where a round with this severity would prune nothing: the next one is a step harder."""
        return replace(self, severity=self.severity + self.step)

    def after(self, number: int, met: bool) -> Controller:
        """The controller after round ``number``, which pruned with ``severity`` and met the objective or not."""
        if met:
            reached = GoodRound(number, self.severity, self.step)
            return Controller(self.severity + self.step, self.step, number, (*self.good, reached))
        last, failures = self.good[-1], self.failures + 1
        if failures < MOST_FAILURES:
            step = last.step / 2**failures
            return Controller(last.severity + step, step, last.number, self.good, failures)
        step = self.step / 2
        if len(self.good) == 1:
            # There is nothing to give up, and pruning by nothing again would be a round for nothing.
            return Controller(step, step, last.number, (GoodRound(last.number, last.severity, step),))
        # The same severity again, by the attention that training has changed meanwhile, and with smaller steps.
        return Controller(last.severity, step, last.number, self.good[:-1])
