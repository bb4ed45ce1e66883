"""Which widths of a channel group are worth considering, and what each of them keeps of its attention.

Works on one group at a time; which width each group gets is decided in `aap_hw.policy.allocation`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def candidate_widths(width: int, granularity: int, at_most: int) -> tuple[int, ...]:
    """Widths of a group that are worth measuring, ascending, the full width last.

    They are the multiples of a step, and the full width itself. The step is the smallest multiple of
    `granularity` for which there are no more than `at_most` of them: between two multiples of the device's
    granularity (usually one vector) a kernel does the same work, so that the widths in between only lose
    channels.

    Parameters
    ----------
    width
        Channels of the unpruned group.
    granularity
        Channels that the device computes at once.
    at_most
        How many candidates the time for measuring allows.

    Raises
    ------
    ValueError
        If an argument is less than one.

    Examples
    --------
    >>> candidate_widths(96, 8, 6)
    (16, 32, 48, 64, 80, 96)
    >>> candidate_widths(20, 8, 6)
    (8, 16, 20)
    """
    for name, number in (("width", width), ("granularity", granularity), ("at_most", at_most)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    step = granularity * -(-width // (granularity * at_most))
    return (*range(step, width, step), width)


def kept_share(scores: ArrayLike, widths: Sequence[int]) -> NDArray[np.float64]:
    """Share of a group's attention that its best `w` channels hold, for each `w` of `widths`.

    If no channel has any attention, nothing tells them apart and each counts the same.

    Parameters
    ----------
    scores
        Attention of each channel, shape ``(width,)``, finite and not negative.
    widths
        How many channels are kept, each from 0 to ``width``.

    Returns
    -------
    array
        Shape ``(len(widths),)``; between 0 and 1, not decreasing with the width, exactly 1 at the full width.

    Raises
    ------
    ValueError
        If scores are not as described or a width is out of range.
    """
    checked = _checked(scores)
    _check_widths(checked, widths)
    largest = checked.max()
    # Divided first: the sum of scores near the largest float would be infinite.
    descending = np.sort(checked / largest)[::-1] if largest > 0 else np.ones_like(checked)
    kept = np.concatenate([[0.0], np.cumsum(descending)])
    share: NDArray[np.float64] = kept[np.asarray(widths, dtype=np.intp)] / kept[-1]
    return share


def best_channels(scores: ArrayLike, w: int) -> NDArray[np.intp]:
    """Indices of the `w` channels with the most attention, ascending; of equals, the first are taken.

    The channels of a smaller width are always among those of a larger one.

    Parameters
    ----------
    scores
        Attention of each channel, shape ``(width,)``, finite and not negative.
    w
        How many channels are kept, from 0 to ``width``.

    Raises
    ------
    ValueError
        If scores are not as described or `w` is out of range.
    """
    checked = _checked(scores)
    _check_widths(checked, (w,))
    return np.sort(np.argsort(-checked, kind="stable")[:w])


def _checked(scores: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"scores must be one number a channel, not an array of shape {array.shape}")
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError("scores must be finite and not negative")
    return array


def _check_widths(scores: NDArray[np.float64], widths: Sequence[int]) -> None:
    for width in widths:
        if not 0 <= width <= scores.size:
            raise ValueError(f"cannot keep {width} of {scores.size} channels")
