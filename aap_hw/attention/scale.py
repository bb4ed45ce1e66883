"""Scores on one scale in all groups, for rules that compare channels of different groups.

The paper compares attention as it is. It grows and shrinks with the scale of a layer's activations, which batch
normalisation and the next layer's weights undo, so that channels of a loud layer look important. The exact allocation
only looks at shares of a group's own score and is the same with ``mean``, ``l2`` and ``max`` as without; with ``rank``
only the order of a group's channels counts, there too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _ranks(scores: Array) -> Array:
    """(0, 1]: the share of channels that do not score higher; equals share the mean of their places."""
    ordered = np.sort(scores)
    places = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right") + 1
    return np.asarray(places / (2 * scores.size))


SCALES: dict[str, Callable[[Array], Array]] = {
    "raw": lambda scores: scores,
    "mean": lambda scores: scores / (scores.mean() or 1.0),
    "l2": lambda scores: scores / (np.sqrt((scores**2).mean()) or 1.0),
    "max": lambda scores: scores / (scores.max() or 1.0),
    "rank": _ranks,
}


def scaled(scores: Mapping[str, Array], how: str) -> dict[str, Array]:
    """Scores of every group by one of ``SCALES``; a group that scores nothing stays at nothing but in ``rank``.

    Each is of the group alone: its mean, its root mean square or its largest score becomes 1, or its channels are
    spread evenly over (0, 1].
    """
    return {name: SCALES[how](np.asarray(each, dtype=np.float64)) for name, each in scores.items()}
