"""What a person sees while a device is profiled: a bar with an estimate, or plain lines where it is no terminal."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from aap_hw.lut.profiling import ProfileProgress

SECONDS_BETWEEN_LINES = 10.0


class ProfileScreen:
    """Shows a profile's progress while it is entered; Ctrl-C becomes a sentence that says what was kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("measuring"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("points", total=None, left="")
        self._kept = 0
        self._last_line = float("-inf")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{self._kept} measured points are kept beside {self._path}; the same command goes on from there"
            )

    def update(self, progress: ProfileProgress) -> None:
        """Show how far the profile is."""
        self._kept = progress.kept + progress.measured
        left = "" if progress.seconds_left is None else f"about {duration(progress.seconds_left)} left"
        if not self._bar.disable:
            self._bar.update(self._task, completed=progress.measured, total=progress.total, left=left)
            return
        now, ends = time.monotonic(), progress.measured in (0, progress.total)
        if ends or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            kept = f" ({progress.kept} were there already)" if progress.measured == 0 and progress.kept else ""
            tail = f", {left}" if left and not ends else ""
            self._console.print(f"measured {progress.measured} of {progress.total} points{kept}{tail}", soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as ``40 s`` or ``3 min 20 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
