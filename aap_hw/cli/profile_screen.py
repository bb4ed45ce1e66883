"""What a person sees while a device measures: a bar with an estimate, or plain lines where it is no terminal."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from aap_hw.activity import telling
from aap_hw.cli.console import PlainConsole

if TYPE_CHECKING:
    from aap_hw.lut.progress import Progress

SECONDS_BETWEEN_LINES = 10.0


class MeasuringScreen:
    """Shows progress while it is entered; Ctrl-C becomes a sentence that says what was kept beside or in a table.

    What is done to each point is ``measuring``; ``compiling``, into a folder, where nothing of it is measured here; or
    ``estimating``.
    """

    def __init__(self, path: Path, *, quiet: bool = False, doing: str = "measuring") -> None:
        self._path, self._what, self._packing = path, "points", doing == "compiling"
        self._done = f"{doing.removesuffix('ing')}ed"
        self._console = PlainConsole(stderr=True, quiet=quiet)
        self._bar = Bar(
            TextColumn(f"{doing} {{task.description}}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not self._console.is_interactive,
        )
        self._task = self._bar.add_task(self._what, total=None, left="")
        self._telling = beside_bar(self._console, self._bar)
        self._kept: dict[str, int] = {}
        self._last_line = float("-inf")

    def __enter__(self) -> Self:
        self._bar.start()
        self._telling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._telling.__exit__(kind, value, trace)
        self._bar.stop()
        if kind is KeyboardInterrupt and self._packing:
            raise KeyboardInterrupt("nothing was packed; the same command begins with the kernels that are compiled")
        if kind is KeyboardInterrupt:
            # Points are in a journal until all are there; whole networks are in the table at once.
            where = "beside" if self._what == "points" else "in"
            counts = {what: count for what, count in self._kept.items() if count} or {self._what: 0}
            kept = " and ".join(f"{count} {self._done} {what}" for what, count in counts.items())
            raise KeyboardInterrupt(f"{kept} are kept {where} {self._path}; the same command goes on from there")

    def update(self, progress: Progress) -> None:
        """Show how far the measuring is."""
        self._what = progress.what
        self._kept[progress.what] = progress.kept + progress.measured
        left = "" if progress.seconds_left is None else f"about {duration(progress.seconds_left)} left"
        if not self._bar.disable:
            self._bar.update(
                self._task, description=self._what, completed=progress.measured, total=progress.total, left=left
            )
            return
        now, ends = time.monotonic(), progress.measured in (0, progress.total)
        if ends or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            kept = f" ({progress.kept} were there already)" if progress.measured == 0 and progress.kept else ""
            tail = f", {left}" if left and not ends else ""
            done = f"{self._done} {progress.measured} of {progress.total} {self._what}{kept}{tail}"
            nothing_left = f"all {progress.kept} {self._what} were there already"
            self._console.print(done if progress.total else nothing_left, soft_wrap=True)


def beside_bar(console: Console, bar: Bar) -> AbstractContextManager[None]:
    """Tell what takes long above a bar, which would otherwise be written over; without one, as usual."""
    if bar.disable:
        return nullcontext()
    return telling(lambda line: console.print(line, soft_wrap=True, markup=False, highlight=False))


def duration(seconds: float) -> str:
    """Seconds as ``40 s`` or ``3 min 20 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
