"""The exception that means "you can fix this", the one that means "we must", and the spelling hint of sentences.

Faults of aap-hw itself that nobody looked for are ordinary exceptions and are not covered here; how each of them
reaches the terminal is decided in `aap_hw.cli.main`.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake or a circumstance that the user can put right.

    The message is one sentence on one line: what was wrong, why, and what to do about it. The command line
    prints it without a traceback and exits with code 2.

    Attributes
    ----------
    details
        Further lines for the command line to print below the sentence, such as the rows of a table; mostly none.
    """

    details: tuple[str, ...] = ()


class Fault(Exception):  # noqa: N818 - what it reports is the fault, not a mistake in reporting
    """A fault of aap-hw that one of its own checks found.

    The message is one sentence on one line: what was found, and what to send along with a report. The command line
    prints it without a traceback and exits with code 1.
    """


def closest(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that `word` was probably meant to be.

    Parameters
    ----------
    word
        What the user wrote.
    known
        The words that would have been accepted.

    Returns
    -------
    str
        ``"; did you mean 'x'?"``, ready to be appended to a sentence, or ``""`` if nothing is near enough.

    Examples
    --------
    >>> closest("resnet81", ["resnet18", "vgg16_bn"])
    "; did you mean 'resnet18'?"
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(word.lower(), by_lower_case, n=1)
    return f"; did you mean '{by_lower_case[near[0]]}'?" if near else ""


NOTHING_ASKED = (
    "there is nothing to prune to: give --budget 20ms, --max-params 40%, --max-flops 50% or --max-memory 5MB; "
    "'aap-hw prune' also takes --max-accuracy-drop 0.5"
)
