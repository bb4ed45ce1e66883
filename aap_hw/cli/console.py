"""Results for people, in plain text: sentences, and tables without rules."""

from __future__ import annotations

import os
from collections.abc import Collection

from rich.console import Console
from rich.table import Table

from aap_hw.cli.streams import results

UNWRAPPED = 1000


class PlainConsole(Console):
    """A console without markup, emoji and colours of its own, as paths may contain brackets and colons.

    A file gets whole lines and no bar. ``FORCE_COLOR`` brings the bold of headings there and changes nothing else.

    Parameters
    ----------
    stderr
        Print to standard error, as JSON has standard output for itself.
    quiet
        Print nothing.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        file = None if stderr else results()
        super().__init__(highlight=False, markup=False, emoji=False, file=file, stderr=stderr, quiet=quiet)
        # With FORCE_COLOR, which many CI services set, rich takes any file for a terminal of 80 columns.
        if not self.file.isatty():
            self.is_interactive = False
            if "COLUMNS" not in os.environ:
                self.width = UNWRAPPED

    def say(self, sentence: str) -> None:
        """Print a sentence on one line, which a terminal wraps if it has to."""
        self.print(sentence, soft_wrap=True)


def grid_of(*headings: str, right: Collection[str] = ()) -> Table:
    """An empty table with these columns; the ones in ``right``, such as numbers, are aligned there."""
    grid = Table(box=None, pad_edge=False)
    for heading in headings:
        grid.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return grid
